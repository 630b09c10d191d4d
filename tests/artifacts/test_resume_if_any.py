"""training.resume=if_any, by what output_dir holds."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import decided as planned
from conftest import finished_run, write_checkpoint

from unsloth_accel.artifacts.resume_if_any import decided, is_done, left_out
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import PROJECTIONS, RunConfig


@pytest.fixture
def run(description: dict[str, Any]) -> RunConfig:
    return from_dict({**description, "training": {"resume": "if_any", "max_steps": 12}})


def test_where_there_is_nothing_it_starts(run: RunConfig) -> None:
    assert not is_done(run)
    assert not run.resume, "undecided"
    assert (decided(run).resume, decided(run).overwrite) == (False, False)
    other = replace(run, training={"max_steps": 1})
    assert decided(other) is other


def test_from_a_whole_checkpoint_it_goes_on(run: RunConfig, description: dict[str, Any], tmp_path: Path) -> None:
    """From none that is cut short: that one gives way to a run from the start, if a run of ours left it."""
    broken = write_checkpoint(tmp_path / "out" / "checkpoint-8", planned(description))
    (broken / "optimizer.pt").unlink()
    assert (decided(run).resume, decided(run).overwrite) == (False, False), "and the launch says whose it isn't"
    (tmp_path / "out" / "accelerate.yaml").write_text("# ddp, written by unsloth-accel with it.\n", encoding="utf-8")
    assert (decided(run).resume, decided(run).overwrite) == (False, True)
    write_checkpoint(tmp_path / "out" / "checkpoint-4", planned(description))
    assert (decided(run).resume, decided(run).overwrite) == (True, False)
    assert not is_done(run)


def test_a_finished_run_has_nothing_left_to_do(run: RunConfig, description: dict[str, Any], tmp_path: Path) -> None:
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    out = finished_run(tmp_path / "out")
    assert is_done(run), "of an earlier version, which left no description beside the adapter"
    plan(run, Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")).write(out)
    shutil.copy(out / "run.planned.yaml", out / "adapter")
    write_checkpoint(out / "checkpoint-8", planned(description))
    assert is_done(run)
    assert not is_done(replace(run, training={**run.training, "resume": True}))
    longer = replace(run, training={**run.training, "max_steps": 24})
    assert not is_done(longer)
    assert decided(longer).resume
    assert not is_done(replace(run, output_dir=str(tmp_path / "elsewhere")))


@pytest.fixture
def adapter_of(run: RunConfig, tmp_path: Path) -> Path:
    """An adapter as `run` saves it after its last step."""
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.planning.planner import plan

    out = finished_run(tmp_path / "out")
    plan(run, Hardware(cpu_cores=2, host_memory_gib=8, reason="no driver")).write(out)
    shutil.copy(out / "run.planned.yaml", out / "adapter")
    return out


def test_an_adapter_alone_is_no_finished_run(run: RunConfig, description: dict[str, Any], adapter_of: Path) -> None:
    """It is saved after the last step: what was killed then lacks results.json, or has an earlier run's, and maybe the
    best checkpoint's weights."""
    from unsloth_accel.artifacts.resume_facts import resume_problems

    out = adapter_of
    run = replace(run, training={**run.training, "load_best_model_at_end": True})
    os.utime(out / "results.json", (1, 1))
    assert is_done(run), "there is nothing to go on from"
    told, changed = left_out(run)
    assert (told.severity, told.key) == ("warning", "output_dir")
    assert "training.load_best_model_at_end" in changed.consequence
    assert "was ended before results.json and maybe the best checkpoint's weights, and" in told.consequence
    write_checkpoint(out / "checkpoint-12", planned(description))
    assert not is_done(run)
    again = decided(run)
    assert again.resume
    assert resume_problems(again) == []
    (out / "results.json").unlink()
    assert not is_done(run)
    (out / "results.json").write_text("{}", encoding="utf-8")
    assert is_done(run)
    pushed = replace(run, training={**run.training, "push_to_hub": True})
    assert not is_done(pushed)
    (out / "results.json").write_text('{"hub": {"error": "no network"}}', encoding="utf-8")
    assert is_done(pushed), "which was told, with the command that pushes"


def test_a_finished_run_says_what_it_is_not(run: RunConfig, description: dict[str, Any], adapter_of: Path) -> None:
    assert left_out(run) == [], "a plan's own decisions are no difference"
    turned = replace(run.lora, target_modules=PROJECTIONS[::-1])
    assert left_out(replace(run, lora=turned)) == []
    told = {"learning_rate": 0.5, "seed": 7, "hub_token": "hf_other", "save_steps": 5}
    other = replace(run, training={**run.training, **told})
    assert is_done(other)
    (word,) = left_out(other)
    assert word.severity == "warning"
    assert word.consequence == "was made with other training.learning_rate, training.seed; it is left so."
    write_checkpoint(adapter_of / "checkpoint-12", planned(description))
    assert left_out(run) == []
    Path(run.data.path).write_text('{"prompt": "other", "completion": "rows"}\n', encoding="utf-8")
    assert "with another data.path;" in str(left_out(run))
