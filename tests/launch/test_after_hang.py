from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_yaml

from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.callbacks.watch_ranks import after_a_hang
from unsloth_accel.launch.after_hang import debugging

SETS = {"UNSLOTH_DEBUG_DISTRIBUTED", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}


def hung(out: Path) -> RunDirectory:
    files = RunDirectory(out)
    files.errors.mkdir(parents=True)
    files.hang.write_text('{"message": "rank 1 hangs", "silent": []}', encoding="utf-8")
    return files


def test_after_a_hang_collectives_are_written_down(tmp_path: Path) -> None:
    assert debugging(RunDirectory(tmp_path), {}) == {}
    files = hung(tmp_path)
    found = debugging(files, {})
    assert found.keys() == SETS
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "logs" / "flight-record-")
    assert "UNSLOTH_DEBUG_DISTRIBUTED" not in debugging(files, {"UNSLOTH_DEBUG_DISTRIBUTED": "0"})


@pytest.mark.parametrize("resume", [True, False])
def test_only_a_launch_that_goes_on_does_so_and_says_it(
    resume: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unsloth_accel.config.read_run import load
    from unsloth_accel.hardware.hardware import Hardware
    from unsloth_accel.launch.launcher import launch_of
    from unsloth_accel.planning.planner import plan

    hung(tmp_path / "out")
    described = {
        "model": {"name": "unsloth/Llama-3.1-8B-Instruct"},
        "data": {"path": "rows.jsonl"},
        "training": {"resume": resume},
        "distributed": {"device": "cpu", "num_processes": 1},
        "output_dir": str(tmp_path / "out"),
    }
    # Of this machine, whose memory has no part in it.
    here = replace(Hardware.detect(), host_memory_gib=64)
    decided = plan(load(write_yaml(tmp_path / "run.yaml", described)), here)
    made = launch_of(decided)
    said = capsys.readouterr().out
    assert ("UNSLOTH_DEBUG_DISTRIBUTED" in made.environment) == resume
    assert said.startswith("the last launch hung: UNSLOTH_DEBUG_DISTRIBUTED, ") == resume
    assert bool(said) == resume


def test_a_run_that_hung_says_how_it_goes_on(tmp_path: Path) -> None:
    said = after_a_hang(tmp_path, tmp_path / "logs")
    stacks = f"The stacks of all ranks are in {tmp_path}/logs/rank-*.stacks"
    assert said == f"{stacks}; there is no whole checkpoint."
