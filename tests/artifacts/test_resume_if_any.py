"""training.resume=if_any, by what output_dir holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import decided as planned
from conftest import finished_run, write_checkpoint

from unsloth_accel.artifacts.resume_if_any import decided, is_done
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig


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
