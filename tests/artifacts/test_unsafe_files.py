"""Code in the place of weights: in no file of a checkpoint or an adapter is it run, and what to do is told."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from unsloth_accel.artifacts.checkpoints import Checkpoint
from unsloth_accel.artifacts.unsafe_files import INDEX, as_unsafe, index_fault, weights_only


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """An optimizer in shards, as Unsloth and accelerate save it."""
    place = tmp_path / "checkpoint-3" / "optimizer_0"
    state = {"exp_avg": torch.ones(3, dtype=torch.bfloat16), "step": torch.tensor(3.0), "lr": 0.1, "foreach": None}
    dcp.save(
        {"state": {"0": state}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}, checkpoint_id=place, no_dist=True
    )
    return place


def test_an_index_of_shards_is_read_and_not_run(shards: Path, tmp_path: Path) -> None:
    """Torch unpickles it whatever it holds, before it loads a shard."""
    assert index_fault(shards / INDEX) is None
    whole = (shards / INDEX).read_bytes()
    (shards / INDEX).write_bytes(whole[:-20])
    assert index_fault(shards / INDEX) == "optimizer_0/.metadata is damaged or cut short"
    for value in (Hostile(tmp_path / "run"), {"state": [Hostile(tmp_path / "run")]}):
        (shards / INDEX).write_bytes(pickle.dumps(value))
        told = index_fault(shards / INDEX)
        assert told == "optimizer_0/.metadata holds code (posix.mkdir), which would run when it is loaded"
    (shards / INDEX).write_bytes(b"\x80\x04\x8c\x05torch\x8c\tos.system\x93\x8c\x04true\x85R.")
    assert "holds code (torch.os.system)" in str(index_fault(shards / INDEX))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_such_an_index_is_not_resumed_from(shards: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(shards.parent)
    (checkpoint.path / "trainer_state.json").write_text('{"global_step": 3}', encoding="utf-8")
    (shards / INDEX).write_bytes(pickle.dumps(Hostile(tmp_path / "run")))
    assert "holds code (posix.mkdir)" in str(checkpoint.fault)


def test_what_shards_hold_beside_tensors_is_not_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch loads it whatever it is, but for the variable that we set in each rank."""
    bad, mark = tmp_path / "bad", tmp_path / "run"
    dcp.save({"a": torch.ones(3), "lr": Hostile(mark)}, checkpoint_id=bad, no_dist=True)
    assert index_fault(bad / INDEX) is None
    environ: dict[str, str] = {}
    weights_only(environ)
    assert environ == {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    chosen = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    weights_only(chosen)
    assert len(chosen) == 1, "torch takes not both"
    with pytest.MonkeyPatch.context() as context:
        context.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
        dcp.load({"a": torch.ones(3), "lr": 0.0}, checkpoint_id=bad, no_dist=True)
    assert mark.is_dir(), "so that this test could fail"
    mark.rmdir()
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointException, match="Weights only load failed") as caught:
        dcp.load({"a": torch.ones(3), "lr": 0.0}, checkpoint_id=bad, no_dist=True)
    assert not mark.exists()
    assert "a file of shards holds code (posix.mkdir), not weights alone" in str(as_unsafe(caught.value))
    state = {"state": {"0": {"exp_avg": torch.zeros(3, dtype=torch.bfloat16), "lr": 0.0}}}
    dcp.load(state, checkpoint_id=shards, no_dist=True)
    assert state["state"]["0"]["lr"] == 0.1, "which is in every optimizer's shards"


def test_torchs_refusal_is_told_with_what_to_do(tmp_path: Path) -> None:
    file, mark = tmp_path / "optimizer.pt", tmp_path / "run"
    torch.save({"a": Hostile(mark)}, file)
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(file, weights_only=True)
    told = str(as_unsafe(caught.value))
    assert told.startswith(
        f"{file} holds code (posix.mkdir), not weights alone: it was not loaded. Fix: go on from another"
    )
    assert "weights_only" not in told, "which torch advises to turn off"
    assert not mark.exists()
    assert as_unsafe(ValueError("any other")) is None
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
