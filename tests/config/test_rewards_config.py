from collections.abc import Callable
from typing import Any

import pytest

from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.rewards_config import RewardFunction, RewardsConfig
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.config.written import described
from unsloth_accel.errors import ConfigError

Read = Callable[[Any], RunConfig]


@pytest.fixture
def read(description: dict[str, Any]) -> Read:
    return lambda rewards: from_dict({**description, "rewards": rewards})


def test_functions_are_names_or_mappings(read: Read) -> None:
    own = {"name": "my_rewards:length", "weight": 2, "arguments": {"most": [1, {"a": 2}], "where": "${output_dir}"}}
    run = read({"functions": ["accuracy", own], "on_error": "skip", "timeout": 3})
    where = run.output_dir
    assert run.rewards == RewardsConfig(
        (RewardFunction("accuracy"), RewardFunction("my_rewards:length", 2.0, {"most": [1, {"a": 2}], "where": where})),
        "skip",
        3.0,
    )
    assert from_dict(described(run)).rewards == run.rewards


@pytest.mark.parametrize("nothing", [None, {}, {"functions": None}, {"functions": []}])
def test_without_functions_there_are_none(read: Read, nothing: Any) -> None:
    assert read(nothing).rewards == RewardsConfig()


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ({"functions": "accuracy"}, "a list of functions is needed. Fix: rewards.functions: [accuracy]"),
        ({"functions": [1]}, "rewards.functions.0=1: wrong type"),
        ({"functions": [{"name": "a", "weigth": 2}]}, "did you mean rewards.functions.0.weight?"),
        ({"functions": [{"weight": 2}]}, "rewards.functions.0.name: is missing"),
        ({"functions": ["a", {"name": "a", "weight": True}]}, "rewards.functions.1.weight=True: wrong type"),
        ({"functions": [{"name": "a", "weight": float("inf")}]}, "rewards.functions.0.weight=inf: wrong type"),
        ({"functions": [{"name": "a", "weight": 10**400}]}, "wrong type: a finite number is needed"),
        ({"functions": [{"name": "a", "arguments": [1]}]}, "rewards.functions.0.arguments=[1]: wrong type"),
        ({"functions": [{"name": "a", "arguments": {"b": "${nothing}"}}]}, "rewards.functions: "),
        ({"on_error": "go on"}, "use one of: stop, skip."),
        ({"timeout": 0}, "rewards.timeout=0.0: is no time"),
        ({"timeout": "long"}, "rewards.timeout='long': wrong type: float is needed"),
        ({"functons": []}, "did you mean rewards.functions?"),
        (["accuracy"], "is a section, not a value. Fix: write its keys below it: functions, on_error, timeout"),
    ],
)
def test_a_mistake_names_the_function(read: Read, rewards: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(rewards)
    (problem,) = caught.value.problems
    assert told in str(problem)
