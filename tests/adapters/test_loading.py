import os

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


@pytest.mark.parametrize("whole", [{"mixture": True}, {"reads_base": True}, {}])
def test_a_mixture_and_a_start_that_reads_the_base_are_loaded_whole(
    whole: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[bool] = []
    monkeypatch.setattr(loading, "loads_rows", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(loading, "available", lambda probe: rows.append(True))  # then it isn't, and that is all
    monkeypatch.setenv("UNSLOTH_FSDP2_SHARDED_LOAD", "1")
    with loading.loading_of(load_in_4bit=False, **{"mixture": False, "reads_base": False, **whole}):
        assert os.environ["UNSLOTH_FSDP2_SHARDED_LOAD"] == ("0" if whole else "1")
        if whole:  # a script's own line, or enable_multi_gpu's, inside of it
            with loading.sharded_loading(load_in_4bit=False):
                pass
    assert rows == ([] if whole else [True])
    assert os.environ["UNSLOTH_FSDP2_SHARDED_LOAD"] == "1"
