"""verify with real runs: two processes that train like one pass, broken ones don't, and each is told why."""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fork_server
import psutil
import pytest
from conftest import ROOT, SCRIPTS, Run, cli_command, variable_rows, write_yaml

from unsloth_accel.artifacts.run_directory import RunDirectory, start_of
from unsloth_accel.config.read_run import load
from unsloth_accel.errors import LaunchError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.verify.runs import Trained, train
from unsloth_accel.verify.settings import Settings, settings
from unsloth_accel.verify.verdict import TOLERANCES, Comparison, compare

pytestmark = pytest.mark.slow
STEPS = 3


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model in float32 on rows of 9 to 96 bytes, so that ranks hold different numbers of tokens."""
    directory = tmp_path_factory.mktemp("described")
    values = {
        "model": {"name": str(tiny), "max_seq_length": 96, "dtype": "float32"},
        "data": {"path": str(variable_rows(directory / "rows.jsonl", [9 + (37 * i) % 88 for i in range(64)]))},
        "batch": {"global_size": 8},
        "training": {"learning_rate": 1e-3, "bf16": False, "per_device_train_batch_size": 2},
        "output_dir": str(directory / "out"),
    }
    return write_yaml(directory / "run.yaml", values)


@pytest.fixture(scope="module")
def planned(described: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    directory = tmp_path_factory.mktemp("verify")
    found = settings(load(described), Hardware.detect(), directory, strategies=["ddp"], steps=STEPS)
    found.write_rows()
    return found


@pytest.fixture(scope="module")
def single(planned: Settings) -> Trained:
    """What one process trains; every test below holds something against it."""
    with fork_server.forked():
        return train(planned.single, time.sleep, threads=planned.threads)


def trained(planned: Settings, directory: Path, fault: str = "", **training: Any) -> Trained:
    """The two processes of `planned`, with a fault of tests/scripts/faults and other training fields."""
    (plan,) = planned.others
    run = replace(plan.run, output_dir=str(directory), training=plan.run.training | training)
    faults = os.pathsep.join([str(SCRIPTS / "faults"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | ({"TRAINING_FAULT": fault, "PYTHONPATH": faults} if fault else {})
    with fork_server.forked():
        return train(replace(plan, run=run), time.sleep, environment, planned.threads)


def compared(single: Trained, other: Trained) -> Comparison:
    return compare(single, other, TOLERANCES["fp32"])


def test_the_command(described: Path, tmp_path: Path, cli: Run) -> None:
    """Two processes train like one; everything is told, and the run's own output directory is left alone."""
    words = ("--strategy", "ddp", "--steps", STEPS, "--json", tmp_path / "found.json", "--keep", tmp_path / "kept")
    done = cli("verify", described, *map(str, words))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same" in done.stdout
    assert "not the same" not in done.stdout
    assert f"ddp: step {STEPS} of {STEPS}" in done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["same"]
    ddp, one = found["runs"]["ddp"], found["runs"]["single"]
    assert found["command"].startswith("unsloth-accel verify")
    assert {"unsloth", "torch"} <= found["versions"].keys()
    for run in (ddp, one):
        assert [len(run[key]) for key in ("loss", "grad_norm", "seconds", "tokens")] == [STEPS] * 4
        assert run["tokens_per_second"] > 0
    assert one["batch"]["accumulation"] == 2 * ddp["batch"]["accumulation"] == 4
    assert len(set(ddp["tokens"])) > 1
    assert [rank["rank"] for rank in ddp["ranks"]] == [0, 1]
    assert all(0.1 < rank[key] < 8 for rank in ddp["ranks"] for key in ("host_loading", "host_training"))
    assert ddp["difference"]["ranks_equal"]
    assert ddp["difference"]["adapter"] < 1e-4
    assert ddp["difference"]["distance"] > 1e-3
    assert not (described.parent / "out").exists()
    assert (tmp_path / "kept" / "ddp" / "adapter" / "adapter_model.safetensors").is_file()


def test_gradients_that_are_summed(planned: Settings, single: Trained, tmp_path: Path) -> None:
    """The ranks stay equal, so that no guard sees it, and Adam hides the factor from the adapter."""
    found = compared(single, trained(planned, tmp_path / "sum", "sum"))
    assert found.ranks_equal
    assert not found.same
    assert any("as if gradients were summed over ranks and not averaged" in fault for fault in found.faults)


def test_gradients_that_stay_each_ranks_own(planned: Settings, single: Trained, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="gradients of the first step differ between ranks"):
        trained(planned, tmp_path / "local", "local")


def test_a_loss_that_each_rank_divides_by_its_own_tokens(planned: Settings, single: Trained, tmp_path: Path) -> None:
    """A fault that a run's own description can make: rows of different lengths get different weights. They are shared
    out by number then, and one is repeated at the epoch's end."""
    other = trained(planned, tmp_path / "own", average_tokens_across_devices=False)
    found = compared(single, other)
    assert other.tokens[0] == single.tokens[0]
    assert not found.same_rows
    assert any("gradient norm differs" in fault for fault in found.faults)
    assert any("final adapters differ" in fault for fault in found.faults)


def test_a_learning_rate_one_percent_higher(planned: Settings, single: Trained, tmp_path: Path) -> None:
    found = compared(single, trained(planned, tmp_path / "rate", "rate"))
    assert found.moved == pytest.approx(0.01, rel=0.1)
    assert any("adapter moved" in fault for fault in found.faults)
    assert any("final adapters differ" in fault for fault in found.faults)


def test_a_row_that_is_learned_twice_at_an_epochs_end(planned: Settings, single: Trained, tmp_path: Path) -> None:
    """The ranks stay equal, and all other steps see the same rows; the second step, an epoch's last, has three."""
    other = trained(planned, tmp_path / "repeated", "repeated")
    assert other.tokens[0] == single.tokens[0]
    assert other.tokens[1] > single.tokens[1]
    found = compared(single, other)
    assert found.ranks_equal
    assert not found.same_rows
    assert any("did not see the same rows" in fault for fault in found.faults)
    assert any("gradient norm differs" in fault for fault in found.faults)


def test_an_adapter_that_stays_where_it_was(single: Trained, tmp_path: Path) -> None:
    still = replace(single, directory=tmp_path / "still")
    shutil.copytree(single.directory, still.directory)
    shutil.copy(start_of(RunDirectory(still.directory).record), still.adapter)
    assert any("nothing was learnt" in fault for fault in compared(still, still).faults)
    assert not compared(single, still).same


def test_interrupting_leaves_nothing(described: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = cli_command("verify", described, "--strategy", "ddp")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    started: list[psutil.Process] = []
    deadline = time.monotonic() + 300
    while len(started) < 2 and time.monotonic() < deadline:  # the launch and its rank
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "stopped" in told
    assert len(started) >= 2
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.glob("unsloth-accel-verify-*"))
