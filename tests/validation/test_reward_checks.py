"""Rewards are looked at before anything starts: their names, what they need, and one's own files."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_yaml

from unsloth_accel.config.read_run import load
from unsloth_accel.errors import Problem
from unsloth_accel.validation.inputs import input_problems, place_problems
from unsloth_accel.validation.reward_checks import reward_problems
from unsloth_accel.validation.rules import Context, check_document, read_document

CODE = """
print("a file may print")
def short(completions, answer, usual=1, *, tokenizer, **columns): ...
def placed(completions, /): ...
class Judge:
    def __init__(self, model): ...
    async def __call__(self, prompts, completions, reference): ...
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(CODE)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "broken.py").write_text("def short(:\n")
    return tmp_path


@pytest.fixture
def file(place: Path, description: dict[str, Any]) -> Any:
    def write(*functions: Any, method: str = "grpo", rows: Any = ({"prompt": "a", "solution": "1"},)) -> Path:
        Path(description["data"]["path"]).write_text("".join(f"{json.dumps(row)}\n" for row in rows) * 8)
        more = {"method": method, "rewards": {"functions": list(functions)}}
        return write_yaml(place / "run.yaml", description | more)

    return write


def told(path: Path) -> list[str]:
    found = check_document(read_document(path))
    return [str(one) for one in found if "reward" in one.rule]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("acuracy", "rewards.functions.0='acuracy': there is no reward of this name. Fix: did you mean accuracy?"),
        ({"name": "cosine", "arguments": {"max_length": 3}}, "cosine takes no max_length; every process fails."),
        ({"name": "format", "arguments": {"strict": True}}, "format takes no strict; every process fails. Fix: remove"),
        ({"name": "repetition_penalty", "arguments": {"max_penalty": 1}}, "max_penalty=1 must not be positive"),
        ({"name": "get_cosine_scaled_reward"}, "needs max_len; every process fails. Fix: {name: get_cosine"),
    ],
)
def test_a_reward_that_cannot_be_made_is_told(file: Any, function: Any, words: str) -> None:
    (only,) = told(file(function))
    assert only.startswith("error: ")
    assert words in only


def test_what_is_right_is_not_told(file: Any) -> None:
    functions = [
        {"name": "cosine", "arguments": {"max_len": 3}},
        {"name": "reasoning_accuracy_reward", "arguments": {"reasoning_delimiters": ["</t>"]}},
        {"name": "get_soft_overlong_punishment", "arguments": {"max_completion_len": 9, "soft_punish_cache": 3}},
        *("accuracy", "length", "code_format", "think_format_reward", "get_repetition_penalty_reward"),
        "nobody:looks_here",
    ]
    assert told(file(*functions)) == []


def test_a_package_that_is_missing_is_named_with_the_command(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "unsloth_accel.validation.reward_checks.find_spec", lambda name: None if name == "math_verify" else find(name)
    )
    (only,) = told(file("accuracy", "format"))
    assert "needs the package math-verify, which is not installed" in only
    assert "pip install math-verify" in only


def test_a_release_of_trl_without_a_reward(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsloth_accel.rewards.reward.source_text", lambda place: "def other(): ...")
    (only,) = told(file("think_format_reward"))
    assert "the installed trl has no think_format_reward" in only


def test_completions_need_a_reward_and_rewards_need_completions(file: Any) -> None:
    (only,) = told(file())
    assert "grpo needs a function that scores completions" in only
    (only,) = told(file("format", method="sft"))
    assert "sft scores no completions: they would have no effect. Fix: method: grpo" in only
    assert told(file("format", method="grop")) == [], "nothing is known of a method that there isn't"


def rewards_of(path: Path) -> list[Problem]:
    found = input_problems(load(path))
    return [one for one in found if one.key.startswith("rewards")]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("my_rewards:shrt", "did you mean my_rewards:short?"),
        ("my_reward:short", "there is no my_reward.py in "),
        ("broken:short", "doesn't import: SyntaxError"),
        ("leaves:short", "ends the process that imports it, with status 3"),
        ("my_rewards:placed", "takes 'completions' by its place alone"),
        ("my_rewards:Judge", "can't be made of its arguments: TypeError: "),
        ({"name": "my_rewards:Judge", "arguments": {"model": "m"}}, "reads the column reference, which no row has"),
        ("my_rewards:short", "reads the column answer, which no row has; columns of data.path: solution. Fix: "),
        ({"name": "my_rewards:placed", "arguments": {"other": 1}}, "doesn't take its arguments: other."),
    ],
)
def test_a_function_of_ones_own_is_imported_elsewhere(file: Any, function: Any, words: str) -> None:
    first, only = rewards_of(file("my_rewards:none", function))
    assert words in str(only)
    assert (first.key, only.key) == ("rewards.functions.0", "rewards.functions.1"), "each is told at its own place"


def test_rows_without_a_column_are_named(file: Any) -> None:
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "a", "solution": "1"}]
    (only,) = rewards_of(file("accuracy", rows=rows))
    assert "reads the column solution, which 8 rows of 16 have not (rows 1, 3, 5" in str(only)
    assert rewards_of(file("my_rewards:short", rows=[{"prompt": "a", "answer": "1"}])) == []
    given = file({"name": "my_rewards:short", "arguments": {"answer": "1"}})
    assert rewards_of(given) == [], "an argument is no column"


def test_a_column_of_another_name(file: Any) -> None:
    run = load(file("accuracy", rows=[{"prompt": "a", "target": "1"}]), ["data.columns={solution: target}"])
    assert [one for one in input_problems(run) if one.key.startswith("rewards")] == []


def test_a_plan_imports_functions_without_rows(file: Any) -> None:
    found = [one for one in place_problems(load(file("broken:short", "accuracy"))) if one.key.startswith("rewards")]
    assert ["SyntaxError" in str(one) for one in found] == [True]


def test_a_method_without_completions_imports_nothing(file: Any) -> None:
    assert reward_problems(load(file("broken:short", method="sft")), {}) == []


def test_a_file_beside_the_run_is_found_from_elsewhere(
    file: Any, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{"prompt": "a", "answer": "1"}]
    path = file("my_rewards:short", {"name": "my_rewards:short", "weight": 2}, "accuracy", rows=rows)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    names = [one.name for one in load(path).rewards.functions]
    assert names == [f"{place}/my_rewards.py:short", f"{place}/my_rewards.py:short", "accuracy"]
    found = check_document(replace(read_document(path), context=Context(here=True)))
    told = [str(one) for one in found if one.rule == "run-input"]
    assert any("accuracy reads the column solution" in one for one in told)
    assert not any("my_rewards" in one for one in told)
    Path("my_rewards.py").touch()
    assert load(path).rewards.functions[0].name == "my_rewards:short", "the working directory comes first"


def test_a_reward_that_reads_completion_is_sent_to_solution(file: Any) -> None:
    """TRL takes the column away."""
    (only,) = rewards_of(file({"name": "my_rewards:Judge", "arguments": {"model": "m"}}, rows=[{"prompt": "a"}]))
    assert "give the rows a column reference" in str(only)
    Path("reads.py").write_text("def score(completions, completion): ...\n")
    (only,) = rewards_of(file("reads:score", rows=[{"prompt": "a", "completion": "b"}]))
    assert "reads the column completion, which no row has; columns of data.path: solution. Fix: read solution" in str(
        only
    )


@pytest.mark.parametrize(("dtype", "warned"), [("auto", True), ("float32", False)])
def test_a_base_in_32_bit_is_merged_without_a_warning(
    dtype: str, warned: bool, place: Path, description: dict[str, Any]
) -> None:
    training = {"use_vllm": True, "vllm_mode": "server"}
    model = description["model"] | ({} if dtype == "auto" else {"dtype": dtype})
    more = {"method": "grpo", "rewards": {"functions": ["format"]}, "training": training, "model": model}
    found = check_document(read_document(write_yaml(place / "run.yaml", description | more)))
    assert any("merges the adapter into the base" in str(one) for one in found) == warned
