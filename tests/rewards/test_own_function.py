"""Functions of one's own, by the file or the module that they are in."""

import sys
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.config.rewards_config import RewardFunction, RewardsConfig
from unsloth_accel.errors import ConfigError
from unsloth_accel.rewards import reward_functions
from unsloth_accel.rewards.own_function import own_function

CODE = """
import helper_of_rewards
def length(completions, factor=1, **columns):
    return [factor * len(text) * helper_of_rewards.ONE for text in completions]
class Most:
    def __init__(self, most):
        self.most = most
    def __call__(self, completions, **columns):
        return [min(self.most, len(text)) for text in completions]
number = 3
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper_of_rewards.py").write_text("ONE = 1\n")
    (tmp_path / "json.py").write_text(CODE)  # a name that Python has already
    (tmp_path / "my_rewards.py").write_text(CODE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.py").write_text("def one(completions):\n    return [1.0] * len(completions)\n")
    return tmp_path


def own(name: str, **arguments: Any) -> Any:
    return own_function(RewardFunction(name, 1.0, arguments))


def test_a_function_is_found_in_the_working_directory() -> None:
    assert own("my_rewards:length")(["abc"]) == [3]
    assert own("my_rewards:length", factor=2)(["abc"]) == [6]
    assert own("my_rewards:Most", most=2)(["abc"]) == [2]
    assert own("folder/other.py:one")(["a", "b"]) == [1, 1]
    assert own("json:length")(["abc"]) == [3]


def test_a_file_takes_no_other_modules_place() -> None:
    import json

    own("json:length")
    assert sys.modules["json"] is json
    import importlib

    assert importlib.import_module("json").dumps([]) == "[]"
    assert sys.path[0] not in ("", str(Path.cwd()))


def test_a_file_is_run_once() -> None:
    assert own("my_rewards:length").__globals__ is own("my_rewards:length").__globals__


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("my_rewards:lenght", {}, "there is no such function in my_rewards. Fix: did you mean my_rewards:length?"),
        ("my_rewards:number", {}, "is no function in my_rewards"),
        ("my_reward:length", {}, "there is no my_reward.py in "),
        ("folder/my_rewards.py:length", {}, "there is no folder/my_rewards.py in "),
        ("my_rewards:Most", {"least": 1}, "can't be made of its arguments: TypeError: "),
        ("broken:length", {}, "doesn't import: SyntaxError: "),
        ("away:length", {}, "doesn't import: ModuleNotFoundError: No module named 'not_there'. Fix: install it"),
        ("away.py:length", {}, "doesn't import: ModuleNotFoundError: No module named 'not_there'. Fix: install it"),
        ("raises:length", {}, "doesn't import: ZeroDivisionError: division by zero. Fix: correct "),
    ],
)
def test_a_mistake_is_named(files: Path, name: str, arguments: dict[str, Any], told: str) -> None:
    (files / "broken.py").write_text("def length(:\n")
    (files / "away.py").write_text("import not_there\n")
    (files / "raises.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        own(name, **arguments)
    (problem,) = caught.value.problems
    assert told in str(problem)


def test_the_functions_of_a_run() -> None:
    asked = RewardsConfig(
        (RewardFunction("format", 0.5), RewardFunction("my_rewards:length", 2.0, {"factor": 3})), "skip", 1.0
    )
    functions, weights = reward_functions(asked)
    assert [one.__name__ for one in functions] == ["format", "my_rewards:length"]
    assert weights == [0.5, 2.0]
    assert [one(["p"], ["abc"], [[1]]) for one in functions] == [[0], [9]]


def test_a_reward_that_nobody_knows_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean accuracy"):
        reward_functions(RewardsConfig((RewardFunction("acuracy"),)))
    with pytest.raises(ConfigError, match=r"rewards.functions.0.arguments=.*max_penalty=1 must not be positive"):
        reward_functions(RewardsConfig((RewardFunction("repetition_penalty", 1.0, {"max_penalty": 1}),)))
