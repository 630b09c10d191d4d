import pytest

from unsloth_accel.adapters.fsdp2 import loading


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}, True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "1"}, False),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2"}, False),
    ],
)
def test_rows_are_loaded_in_an_fsdp2_launch_only(environ: dict[str, str], launched: bool) -> None:
    assert loading.is_launched(environ) is launched


def test_rows_are_not_loaded_where_the_config_places_weights_itself() -> None:
    launch = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "FSDP_OFFLOAD_PARAMS": "false"}
    assert loading.loads_rows(launch)
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        with pytest.warns(UserWarning, match="every GPU loads the whole model"):
            assert not loading.loads_rows({**launch, name: "true"})
