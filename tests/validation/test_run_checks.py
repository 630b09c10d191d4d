"""launch and plan find what validate finds, all of it together, before anything starts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from checked_configs import FILES
from conftest import write_yaml

from unsloth_accel.cli.main import main
from unsloth_accel.config.installed_source import enum_words, parameters, source_text, table
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.launcher import launch
from unsloth_accel.validation import inputs
from unsloth_accel.validation.rules import Context, Document, check_document, validate
from unsloth_accel.validation.run_checks import read

CPU = Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")
WRONG = {
    "lr_scheduler_type": "cosin",
    "optim": "adam",
    "save_strategy": "step",
    "loss_type": "foo",
    "learning_rate": -1,
    "max_stps": 2,
}
"""Words and numbers that only the trainer's config, the trainer and torch refuse; and a key that the reader does."""


@pytest.fixture
def file(tmp_path: Path, description: dict[str, Any]) -> Path:
    return write_yaml(tmp_path / "run.yaml", {**description, "training": WRONG})


def keys(error: str) -> set[str]:
    return {line.split("error: ")[1].split("=")[0].split(":")[0] for line in error.splitlines() if "error: " in line}


def test_all_is_told_together_by_launch_plan_and_validate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {f"training.{name}" for name in WRONG}
    for words in ([str(file)], [str(file), "--dry-run"]):
        with pytest.raises(ConfigError) as raised:
            launch(words, hardware=CPU)
        assert keys(str(raised.value)) == wrong
    assert main(["plan", str(file)]) == 2
    assert keys(capsys.readouterr().err) == wrong
    assert main(["validate", "--json", str(file)]) == 1
    assert {problem["key"] for problem in json.loads(capsys.readouterr().out)} == wrong


@pytest.mark.parametrize(
    ("training", "status"),
    [
        # save_strategy is `no` where nothing is said: checkpoints are written by the clock.
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}, 1),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}, 0),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 5}, 1),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "best"}, 0),
        ({"load_best_model_at_end": True}, 1),
        ({"eval_strategy": False}, 0),
    ],
)
def test_our_defaults_are_checked_and_not_transformers(
    tmp_path: Path, description: dict[str, Any], training: dict[str, Any], status: int
) -> None:
    data = {**description["data"], "eval_path": description["data"]["path"]}
    file = write_yaml(tmp_path / "run.yaml", {**description, "data": data, "training": training})
    assert main(["validate", str(file)]) == status
    assert main(["plan", str(file), "distributed.device=cpu"]) == 2 * status


@pytest.mark.parametrize("name", ["axolotl", "llamafactory", "trl_script", "torchtune", "accelerate_xpu"])
def test_a_foreign_file_is_recognised(name: str) -> None:
    file = FILES / "foreign" / f"{name}.yaml"
    with pytest.raises(ConfigError) as raised:
        read(file, ["model.name=x"])
    (problem,) = raised.value.problems
    assert problem.key == str(file)
    assert "words; nothing of it was checked" in problem.consequence or "is an accelerate config" in problem.consequence
    for command in (["plan"], ["launch"]):
        assert main([*command, str(file)]) == 2


def test_a_run_with_a_key_of_another_tool_is_a_run(tmp_path: Path, description: dict[str, Any]) -> None:
    name = description["model"].pop("name")
    file = write_yaml(tmp_path / "run.yaml", {**description, "model_name_or_path": name})
    with pytest.raises(ConfigError, match=r"did you mean model\.name\?"):
        read(file)
    (report,) = validate([file])
    assert report.document.kind == "run"


@pytest.mark.parametrize("name", ["axolotl", "llamafactory", "trl_script"])
def test_the_command_that_translates_a_foreign_file_is_told_and_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILES / "foreign" / f"{name}.yaml", "their file.yaml")
    for command in ("plan", "launch", "validate"):
        main([command, "their file.yaml"])
        printed = "".join(capsys.readouterr())
        found = re.search(r"Fix: (unsloth-accel init --from .*), which makes a run.yaml of it", printed)
        assert found, printed
    assert main([*shlex.split(found[1])[1:], "--data", "rows.jsonl"]) == 0
    assert Path("run.yaml").exists()


@pytest.mark.parametrize(
    ("said", "rule", "fix"),
    [
        ("none", None, ""),
        (["none"], None, ""),
        ("wandbb", "run-reporter", "did you mean wandb?"),
        ("tb", "run-reporter", "did you mean tensorboard?"),
        (["kubeflow", "clear_ml"], "run-reporter", "did you mean clearml?"),
        ("dagshub", "run-reporter", "logging.report_to: none, or pip install dagshub"),
    ],
)
def test_reporters(said: Any, rule: str | None, fix: str) -> None:
    found = check_document(Document(file="", kind="run", values={"logging": {"report_to": said}}))
    assert [problem.rule for problem in found] == [rule] * bool(rule)
    assert all(problem.fix.startswith(fix) for problem in found)


def scheduled(word: str, **arguments: Any) -> dict[str, Any]:
    return {"lr_scheduler_type": word, "lr_scheduler_kwargs": arguments}


@pytest.mark.parametrize(
    ("training", "fixes"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, ["training.lr_scheduler_kwargs: {num_decay_steps: 100}"]),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}, []),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 2}}, ["did you mean num_cycles?"]),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}}, ["give float"]),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1.5}}, []),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "low"}}, ["give float or None"]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": [1]}}, ["give float"]),
        ({"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"factr": 1}}, ["did you mean factor?", "training."]),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}}, ["remove it, or another"]),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": "abc"}, ["remove it, or another"]),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, ["training.lr_scheduler_type: linear"]),
        (scheduled("warmup_stable_decay", num_decay_steps=3, warmup_type="sqrt"), ["did you mean 1-sqrt?"]),
        (scheduled("warmup_stable_decay", num_decay_steps=3, decay_type="1-sqrt", warmup_type="cosine"), []),
        (scheduled("reduce_lr_on_plateau", mode="mim"), ["did you mean min?", "training.lr_scheduler_type: linear"]),
        (scheduled("greedy", threshold_mode="asb", factor=1), [*("did you mean abs?", "training.lr"), "training.lr"]),
        ({"log_level": "passive", "log_level_replica": "infos"}, ["did you mean info?"]),
        ({"lr_scheduler_type": "cosine_with_minlr"}, ["did you mean cosine_with_min_lr? Then also: training.lr_"]),
        ({"metric_for_best_model": "f1"}, []),
        ({"adam_beta1": 1, "seed": -1}, ["training.adam_beta1: 0.9, or a number", "training.seed: 42, or a number"]),
        ({"save_strategy": "bests"}, ["best needs metric_for_best_model; every process fails. So: training.metric_"]),
        ({"debug": "underflow_overflow nans"}, ["one of: underflow_overflow, tpu_metrics_debug"]),
        ({"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}, []),
        ({"optim": "adamw_8bit", "optim_args": "unseen=1"}, []),
        ({"optim": "adafactor", "optim_args": "relative_step=true"}, ["remove it, or another training.optim"]),
        ({"optim_args": "betas=0.9"}, ["remove it, or another training.optim"]),
    ],
)
def test_what_a_setting_needs(training: dict[str, Any], fixes: list[str]) -> None:
    found = check_document(Document(file="", kind="run", values={"training": training}))
    assert len(found) == len(fixes), found
    for problem, fix in zip(found, fixes, strict=True):
        assert problem.fix.startswith(fix)


@pytest.mark.parametrize(
    ("training", "fixes"),
    [
        ({"loss_type": "grpoo"}, ["did you mean grpo?"]),
        ({"loss_type": "dapo", "scale_rewards": "none", "importance_sampling_level": "sequence"}, []),
        ({"scale_rewards": False, "multi_objective_aggregation": "normalize_then_sum"}, []),
        ({"scale_rewards": "grup", "importance_sampling_level": "tokens"}, ["did you mean token?", "did you mean gro"]),
        ({"vllm_importance_sampling_mode": "token_maskk"}, []),  # nobody looks at it without a server
    ],
)
def test_words_of_grpo(training: dict[str, Any], fixes: list[str]) -> None:
    values = {"method": "grpo", "rewards": {"functions": ["format"]}, "training": training}
    found = check_document(Document(file="", kind="run", values=values))
    assert [one.fix[: len(fix)] for one, fix in zip(found, fixes, strict=True)] == fixes


def test_words_of_a_misspelt_method_are_left_to_it() -> None:
    words = {"loss_type": "dapo", "metric_for_best_model": "eval_reward", "early_stopping_patience": 1}
    values = {"method": "grop", "rewards": {"functions": ["format"]}, "training": words}
    assert check_document(Document(file="", kind="run", values=values)) == []
    values["training"] = {"loss_type": "dapo", "optim": "sgdd"}
    (found,) = check_document(Document(file="", kind="run", values=values))
    assert found.key == "training.optim"


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "cache_implementation": "static"}, {}),
        ({"suppress_tokens": [1], "use_cache": False}, {}),
        ({"temperature": 0.5}, {"temperature": "training.temperature: 0.5"}),
        ({"max_new_tokens": 64}, {"max_new_tokens": "training.max_completion_length: 64"}),
        ({"seed": 3}, {"seed": "remove it, or a name of transformers' GenerationConfig"}),
        ({"typical_q": 0.9}, {"typical_q": "did you mean training.generation_kwargs.typical_p?"}),
        ({"disable_compile": True}, {"disable_compile": "remove it"}),
    ],
)
def test_arguments_of_generating(training: dict[str, Any], told: dict[str, str]) -> None:
    """TRL says that names which have a field of its own override it; a seed is vLLM's."""

    def found(**more: Any) -> dict[str, str]:
        values = {"method": "grpo", "training": {"generation_kwargs": training, **more}}
        problems = check_document(Document(file="", kind="run", values=values))
        return {one.key.rpartition(".")[2]: one.fix for one in problems if "generation_kwargs" in one.key}

    plain, server = found(), found(use_vllm=True, vllm_mode="server")
    assert plain.keys() == told.keys()
    assert all(plain[name].startswith(fix) for name, fix in told.items())
    assert server.keys() == told.keys() - {"seed", "typical_q", "disable_compile"}


def test_a_small_number_without_a_point_is_one_to_every_command(
    tmp_path: Path, description: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """PyYAML reads 1e-4 as text, OmegaConf as a number."""
    file = write_yaml(tmp_path / "run.yaml", {**description, "training": {}})
    file.write_text(file.read_text(encoding="utf-8").replace("training: {}", "training: {learning_rate: -1e-4}"))
    assert main(["validate", str(file)]) == 1
    assert "must be at least 0" in capsys.readouterr().out


def test_what_is_there_is_looked_at_unless_it_is_for_other_hardware(
    tmp_path: Path, description: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**description, "data": {"path": "nowhere.jsonl"}, "lora": {"target_modules": ["q_porj"]}}
    file = write_yaml(tmp_path / "run.yaml", values)
    assert main(["validate", str(file)]) == 1
    said = capsys.readouterr().out
    assert "data.path='nowhere.jsonl': no such file" in said
    assert "did you mean q_proj?" in said
    assert main(["validate", "--hardware", "cpu", str(file)]) == 0


def test_what_a_run_names_is_looked_at_once_for_each_reading(
    tmp_path: Path, description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(inputs, "input_problems", lambda run: seen.append(run) or [])
    with_a_fix = {"training": {"torch_compile": True}}  # which is tried
    file = write_yaml(tmp_path / "run.yaml", description | with_a_fix)
    for readings in (1, 2):  # what it names may have changed
        validate([file], Context(here=True))
        assert len(seen) == readings


def test_what_is_not_installed_is_empty() -> None:
    assert source_text("no_such_package/file.py") == ""
    assert enum_words("no_such_package/file.py:Words") == {}
    assert table("transformers/optimization.py:NO_SUCH_TABLE") == {}
    assert parameters("transformers/optimization.py:no_such_function") == {}


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 2.5])
def test_steps_are_whole(number: float, description: dict[str, Any]) -> None:
    values = {**description, "training": {"save_strategy": "steps", "save_steps": number}}
    (found,) = check_document(Document(file="", kind="run", values=values))
    assert (found.rule, found.key) == ("run-steps", "training.save_steps")


@pytest.mark.parametrize(
    ("distributed", "hardware", "refused"),
    [
        ({"strategy": "single"}, None, False),
        ({"num_processes": 1}, None, False),
        ({}, "4090", False),
        ({}, "2x4090", True),
        ({"strategy": "ddp"}, None, True),
    ],
)
def test_what_runs_in_one_process_only(
    distributed: dict[str, Any], hardware: str | None, refused: bool, description: dict[str, Any]
) -> None:
    training = {"optim": "galore_adamw_layerwise", "optim_target_modules": "all-linear"}
    values = {**description, "training": training, "distributed": distributed}
    context = Context(hardware=Hardware.parse(hardware) if hardware else None)
    found = check_document(Document(file="", kind="run", values=values, context=context))
    assert any("one process only" in one.consequence for one in found) == refused
