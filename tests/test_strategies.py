"""The strategies' records: which one a config starts, which ones a plan may take, and that they name what there is."""

import pytest

from unsloth_accel.capabilities.patches import PATCHES
from unsloth_accel.errors import ConfigError
from unsloth_accel.registry import imported
from unsloth_accel.strategies import STRATEGIES, Strategy, choosable, strategy_of, usual


@pytest.mark.parametrize(
    ("distributed_type", "version", "variables", "name"),
    [
        ("MULTI_GPU", None, {}, "ddp"),
        ("MULTI_CPU", None, {}, "ddp"),
        ("MULTI_GPU", 2, {}, "ddp"),  # an fsdp_config that accelerate ignores
        ("FSDP", 2, {}, "fsdp2"),
        ("FSDP", "2", {}, "fsdp2"),
        ("FSDP", None, {}, "fsdp1"),  # accelerate takes version 1 where nothing is said
        ("MULTI_GPU", None, {"UNSLOTH_FSDP2": "1"}, "fsdp2_native"),  # the others say how, this one chooses it
        ("MULTI_GPU", None, {"UNSLOTH_FSDP2": "0"}, "ddp"),
    ],
)
def test_what_a_config_starts(distributed_type: str, version: object, variables: dict[str, str], name: str) -> None:
    assert strategy_of(distributed_type, version, variables).name == name


def test_what_a_plan_may_take() -> None:
    assert [one.name for one in choosable(1)] == ["single"]
    assert [one.name for one in choosable(8)] == ["ddp", "fsdp2", "fsdp2_native"]
    assert (usual(1).name, usual(8).name) == ("single", "ddp")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: one.name)
def test_a_record_names_what_there_is(strategy: Strategy) -> None:
    assert set(strategy.needs) <= {one.what for one in PATCHES}
    assert set(strategy.cannot) <= {"4bit", "bitsandbytes", "embeddings", "generate"}
    assert set(strategy.reads) <= {one.optimizer_state for one in STRATEGIES} | {"whole"}
    assert strategy.about
    assert not strategy.adapter or callable(imported(strategy.adapter))
    assert strategy.data_parallel(8) == 8


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"distributed.strategy='fsdp3': unknown value. Fix: did you mean fsdp\d\?"):
        STRATEGIES["fsdp3"]
    assert STRATEGIES.get("auto") is None
    assert STRATEGIES.get(None) is None
    assert "ddp" in STRATEGIES
    assert ["ddp"] not in STRATEGIES, "what a YAML holds may be no name, and is no reason to fail"
