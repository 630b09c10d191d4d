"""Disks that get full while a run trains, and failures after its last step: no adapter is lost, and no word of it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from conftest import ROOT, SCRIPTS, adapter, finished_run, steps, write_small_run

from unsloth_accel.artifacts.checkpoints import checkpoints
from unsloth_accel.report.run_record import read_run_record

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """Six steps of the tiny model, a checkpoint every two."""
    return write_small_run(tmp_path, tiny, 41, max_steps=6, save_strategy="steps", save_steps=2)


def launch(run: Path, out: Path, full_at: str, room_at: str, *words: str, **variables: str) -> Any:
    command = [sys.executable, SCRIPTS / "full_disk.py", full_at, room_at, run, f"output_dir={out}", *words]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    return fork_server.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment
    )


def test_a_disk_that_stays_full_costs_neither_the_adapter_nor_the_run_before(run: Path, small_disk: Path) -> None:
    """Two processes over a finished run: what they learned lies elsewhere, and everyone says where."""
    earlier = finished_run(small_disk / "out")
    words = ["training.overwrite=true", "training.save_strategy=no"]
    done = launch(run, small_disk / "out", "3", "0", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "step 6/6" in done.stdout
    assert "Traceback" not in done.stderr
    (where,) = set(re.findall(r"It is complete in (\S+) on ", done.stderr))
    assert adapter(Path(where).parent)
    assert max(float(tensor.abs().max()) for name, tensor in adapter(Path(where).parent).items() if "lora_B" in name)
    assert f"adapter   {where}" in done.stdout
    (last,) = [line for line in done.stderr.split("\n") if line.startswith("unsloth-accel: ")]
    assert "No space left on device. It is complete in" in last
    assert "Fix: make room there" in last
    assert done.stderr.count("logs can't be written: No space left on device; training goes on") == 1
    assert (earlier / "adapter" / "adapter_config.json").read_text(encoding="utf-8") == "{}"
    shutil.rmtree(Path(where).parent)


def test_a_disk_that_gets_room_again(run: Path, small_disk: Path) -> None:
    """One process, without a byte from the first step to the fifth: every line of its logs is there in the end."""
    done = launch(run, small_disk / "out", "0", "5", "distributed.num_processes=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"checkpoint-2 was not saved: .*No space left on device.*Fix: make room there", done.stderr)
    assert done.stderr.count("Fix: make room") == done.stderr.count(" was not saved: ") + done.stderr.count(
        "logs can't"
    )
    assert [path.name for path in checkpoints(small_disk / "out")] == ["checkpoint-6"]
    assert [step["step"] for step in steps(small_disk / "out")] == [1, 2, 3, 4, 5, 6]
    record = read_run_record(small_disk / "out")
    assert [step["step"] for step in record.ranks[0].steps] == [1, 2, 3, 4, 5, 6]
    assert record.results["training"]["steps"] == 6
    assert adapter(small_disk / "out")


def test_a_rank_that_fails_on_a_full_disk_is_named(run: Path, small_disk: Path) -> None:
    """Its own word can't be left in output_dir; rank 0's is of a connection that was closed."""
    words = ["training.save_strategy=no"]
    done = launch(run, small_disk / "out", "3", "0", *words, FAIL_AT="4")
    assert done.returncode == 1
    assert "unsloth-accel: rank 1 failed: RuntimeError: rank 1 fails" in done.stderr
    assert "No space left on device" not in done.stderr.split("unsloth-accel: ")[-1]


def test_an_evaluation_that_fails_after_the_last_step_costs_nothing(run: Path, tmp_path: Path) -> None:
    words = ["data.eval_path=" + str(tmp_path / "rows.jsonl"), "training.eval_strategy=steps", "training.eval_steps=3"]
    words += ["training.load_best_model_at_end=true", "training.metric_for_best_model=loss", "evaluation.loss=false"]
    done = launch(run, tmp_path / "out", "-", "0", *words, "training.save_steps=3", FAIL_EVALUATION="1")
    assert done.returncode == 1
    assert f"what failed came after the last step; the adapter is in {tmp_path / 'out' / 'adapter'}" in done.stdout
    assert "RuntimeError: the evaluation fails" in done.stderr
    assert adapter(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "logs" / "summary.json").read_text(encoding="utf-8"))
    assert report["status"] == "failed"


def test_a_console_that_is_full_ends_no_training(run: Path, tmp_path: Path) -> None:
    """`launch … > run.log` on a disk without room."""
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(run), f"output_dir={tmp_path / 'out'}"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        words = [*command, "training.save_strategy=no", "distributed.num_processes=1"]
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=full, timeout=400)
    assert done.returncode == 0
    assert adapter(tmp_path / "out")
