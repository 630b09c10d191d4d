"""Runs that don't fit their checkpoints: told before any process starts, without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import decided, finished_run, write_checkpoint

from unsloth_accel.artifacts.resume_facts import made_with, resume_problems
from unsloth_accel.config.run_config import RunConfig

CHANGES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "rank": ({"lora": {"r": 8}}, "lora.r", "8", "16"),
    "modules": ({"lora": {"target_modules": ["q_proj"]}}, "lora.target_modules", "['q_proj']", "down_proj"),
    "scale": ({"lora": {"alpha": 32}}, "lora.alpha", "32", "16"),
    "batch": ({"batch": {"global_size": 4}}, "batch.global_size", "4", "8"),
    "seed": ({"training": {"seed": 1}}, "training.seed", "1", "42"),
    "tokens": ({"model": {"max_seq_length": 512}}, "model.max_seq_length", "512", "2048"),
}


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_must_fit_its_checkpoint(
    name: str, record: bool, description: dict[str, Any], planned: RunConfig, tmp_path: Path
) -> None:
    """Both values are named. Without a record PEFT's adapter_config.json tells what it knows."""
    change, key, now, before = CHANGES[name]
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=record)
    assert resume_problems(planned) == []
    merged = {section: {**description.get(section, {}), **values} for section, values in change.items()}
    changed = decided({**description, **merged})
    problems = resume_problems(changed)
    if not record and not key.startswith("lora"):
        assert problems == []
        return
    assert [(problem.key, problem.severity) for problem in problems] == [(key, "error")]
    assert now in str(problems[0].value)
    assert f"checkpoint-2 was made with {before}" in problems[0].consequence or before in problems[0].consequence


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_another_base_is_refused(record: bool, description: dict[str, Any], planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=record)
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (problem,) = resume_problems(decided({**description, "model": {"name": str(tmp_path / "other")}}))
    assert (problem.key, problem.value) == ("model.name", str(tmp_path / "other"))
    assert str(tmp_path / "model") in problem.consequence


def test_unsloths_own_copy_of_the_base_is_the_base(planned: RunConfig, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "out" / "checkpoint-2", planned, record=False)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit"
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    planned.model.name = "meta-llama/Llama-3.2-1B-Instruct"
    assert resume_problems(planned) == []
    planned.model.name = "meta-llama/Llama-3.2-3B-Instruct"
    assert [problem.key for problem in resume_problems(planned)] == ["model.name"]


def test_other_rows_are_refused(planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    moved = tmp_path / "moved.jsonl"
    shutil.move(planned.data.path, moved)
    planned.data.path = str(moved)
    assert resume_problems(planned) == []
    moved.write_text('{"text": "b"}\n' * 8, encoding="utf-8")
    assert [(problem.key, problem.severity) for problem in resume_problems(planned)] == [("data.path", "error")]


def test_a_learning_rate_that_would_not_count_is_told(planned: RunConfig, tmp_path: Path) -> None:
    planned.training["learning_rate"] = 1e-3
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.training["learning_rate"] = 1e-4
    (problem,) = resume_problems(planned)
    assert (problem.key, problem.severity) == ("training.learning_rate", "warning")


TRIED = {
    *(("single", "single"), ("single", "ddp"), ("ddp", "single"), ("ddp", "ddp")),
    *(("fsdp2_native", "single"), ("fsdp2_native", "ddp"), ("fsdp2_native", "fsdp2_native"), ("fsdp2", "fsdp2")),
}
"""From and to: what a run can go on with."""


@pytest.mark.parametrize("before", ["single", "ddp", "fsdp2", "fsdp2_native"])
@pytest.mark.parametrize("now", ["single", "ddp", "fsdp2", "fsdp2_native"])
def test_strategies_that_read_each_others_checkpoints(
    before: str, now: str, planned: RunConfig, tmp_path: Path
) -> None:
    planned.distributed.strategy = before
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.distributed.strategy = now
    keys = [problem.key for problem in resume_problems(planned)]
    assert keys == ([] if (before, now) in TRIED else ["distributed.strategy"])


def test_another_number_of_processes(planned: RunConfig, tmp_path: Path) -> None:
    """Goes on with the same rows, unless the order of rows depends on the number, or dropout draws per process."""
    write_checkpoint(tmp_path / "out" / "checkpoint-2", planned)
    planned.distributed.num_processes = 4
    assert resume_problems(planned) == []
    planned.lora.dropout = 0.1
    assert [(p.key, p.severity) for p in resume_problems(planned)] == [("lora.dropout", "warning")]
    planned.training["train_sampling_strategy"] = "group_by_length"
    assert ("distributed.num_processes", "error") in [(p.key, p.severity) for p in resume_problems(planned)]


def test_a_finished_run_goes_on_only_with_more_steps(planned: RunConfig, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out" / "checkpoint-6", planned)
    planned.training["max_steps"] = 6
    assert resume_problems(planned) == []  # its adapter was lost: going on writes it again
    finished_run(tmp_path / "out")
    assert [(p.key, p.severity) for p in resume_problems(planned)] == [("training.max_steps", "error")]
    planned.training["max_steps"] = 8
    (problem,) = resume_problems(planned)
    assert problem.severity == "warning"
    assert "the new adapter takes the old one's place" in problem.consequence


def test_what_a_run_is_made_with_survives_json(planned: RunConfig) -> None:
    assert json.loads(json.dumps(made_with(planned))) == made_with(planned)
