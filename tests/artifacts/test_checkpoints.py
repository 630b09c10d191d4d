"""Checkpoints cut short: told before any process starts, without torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run, write_checkpoint, write_yaml

from unsloth_accel.artifacts.checkpoints import RECORD, Checkpoint, checkpoints, newest
from unsloth_accel.config.run_config import RunConfig


def truncated(path: Path, size: int | None = None) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if size is None else size])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (lambda at: truncated(at / "adapter_model.safetensors"), "adapter_model.safetensors"),
    "weights empty": (lambda at: truncated(at / "adapter_model.safetensors", 0), "adapter_model.safetensors"),
    "no weights": (lambda at: (at / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "no optimizer": (lambda at: (at / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "optimizer cut": (lambda at: truncated(at / "optimizer.pt"), "optimizer.pt"),
    "no scheduler": (lambda at: (at / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "no state": (lambda at: (at / "trainer_state.json").unlink(), "trainer_state.json"),
    "state cut": (lambda at: truncated(at / "trainer_state.json"), "trainer_state.json is damaged"),
    "rank 0's random state": (lambda at: (at / "rng_state_0.pth").unlink(), "rng_state_0.pth is missing"),
    "config cut": (lambda at: truncated(at / "adapter_config.json"), "adapter_config.json"),
}


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_cut_short_is_seen(name: str, record: bool, tmp_path: Path, planned: RunConfig) -> None:
    damage, told = FAULTS[name]
    for step in (2, 4):
        write_checkpoint(tmp_path / f"checkpoint-{step}", planned, record=record)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    damage(tmp_path / "checkpoint-4")
    whole, broken = newest(tmp_path)
    assert whole is not None
    assert whole.path.name == "checkpoint-2"
    assert [told in str(found.fault) for found in broken] == [True], broken[0].fault


def test_the_last_ranks_random_state_is_known_from_the_record(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned)
    (path / "rng_state_1.pth").unlink()
    assert Checkpoint(path).fault == "rng_state_1.pth is missing"


@pytest.mark.parametrize("told", [True, False], ids=["by its state", "by the names"])
def test_without_a_record_a_rank_is_missed(told: bool, tmp_path: Path, planned: RunConfig) -> None:
    """A rank that was killed as it saved: the state of a run of ours says how many they were; of a plain Trainer's the
    number in a single name says that there was another."""
    ranks = 3 if told else 2
    path = write_checkpoint(tmp_path / "checkpoint-2", planned, record=False, ranks=ranks)
    state = {"global_step": 2, "stateful_callbacks": {"unsloth_accel": {"num_processes": ranks}}}
    if told:
        (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    assert Checkpoint(path).fault is None
    (path / f"rng_state_{ranks - 1}.pth").unlink()
    assert Checkpoint(path).fault == f"rng_state_{ranks - 1}.pth is missing"


def test_shards_tell_of_ranks_too(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned, record=False)
    (path / "optimizer_0").mkdir()
    for name in (".metadata", "__0_0.distcp", "__2_0.distcp"):
        (path / "optimizer_0" / name).write_bytes(pickle.dumps({}))
    assert Checkpoint(path).fault == "rng_state_2.pth is missing"


def test_one_process_has_one_random_state(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned, record=False, ranks=1)
    (path / "rng_state_0.pth").rename(path / "rng_state.pth")
    assert Checkpoint(path).fault is None


def test_a_record_cut_short_is_no_record(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned)
    truncated(path / RECORD)
    assert Checkpoint(path).fault == f"{RECORD} is damaged or cut short"


def test_the_steps_must_be_its_name(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned, record=False)
    path.rename(tmp_path / "checkpoint-5")
    assert Checkpoint(tmp_path / "checkpoint-5").fault == "trainer_state.json is of step 2"


def test_shards_without_their_index_are_cut_short(tmp_path: Path, planned: RunConfig) -> None:
    path = write_checkpoint(tmp_path / "checkpoint-2", planned, record=False)
    (path / "optimizer_0").mkdir()
    assert Checkpoint(path).fault == "optimizer_0/.metadata, which is written last, is missing"
    (path / "optimizer_0" / ".metadata").write_bytes(pickle.dumps({}))
    (path / "optimizer.pt").unlink()
    assert Checkpoint(path).fault is None


def launched(cli: Run, description: dict[str, Any], tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    file = write_yaml(tmp_path / "run.yaml", description)
    where = ("distributed.device=cpu", "distributed.num_processes=2")
    return cli("launch", file, "training.resume=true", "--dry-run", *where, *more)


def test_the_launch_says_which_one_it_takes(
    cli: Run, description: dict[str, Any], planned: RunConfig, tmp_path: Path
) -> None:
    for step in (2, 4):
        write_checkpoint(tmp_path / "out" / f"checkpoint-{step}", planned)
    truncated(tmp_path / "out" / "checkpoint-4" / "optimizer.pt")
    done = launched(cli, description, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-4: optimizer.pt has" in done.stderr
    assert "goes on from checkpoint-2" in done.stderr


def test_looking_at_checkpoints_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, unsloth_accel.artifacts.checkpoints, unsloth_accel.artifacts.resume_facts\n"
        "import unsloth_accel.artifacts.merge, unsloth_accel.cli.merge\n"
        "assert not {'torch', 'unsloth', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("record", [True, False], ids=["recorded", "not recorded"])
def test_a_checkpoint_under_another_name_has_the_step_of_its_state(
    record: bool, tmp_path: Path, planned: RunConfig
) -> None:
    """Such as the `last-checkpoint` that the Trainer pushes to the Hub, to be gone on from."""
    path = write_checkpoint(tmp_path / "checkpoint-4", planned, record=record).rename(tmp_path / "last-checkpoint")
    assert (Checkpoint(path).step, Checkpoint(path).fault) == (4, None)
    assert checkpoints(tmp_path) == []
    (path / "trainer_state.json").write_text("{", encoding="utf-8")
    assert "damaged" in str(Checkpoint(path).fault) or "of its" in str(Checkpoint(path).fault)


def test_a_number_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-²").mkdir()
    assert newest(tmp_path) == (None, [])
