"""The Trainer's checkpoints of a run, read without torch: which are whole, and what each was made with.

A whole checkpoint has a record, `unsloth_accel.json`, written after everything else: every file with its size, and
the facts on which going on exactly depends. One without a record (of a plain Trainer) is judged by its files' forms.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.start_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..errors import ConfigError
from ..files import read_json, sizes_below
from ..models.safetensors_header import read_header
from .run_directory import RunDirectory, step_of
from .unsafe_files import INDEX, index_fault

RECORD = "unsloth_accel.json"
STATE = "trainer_state.json"
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_dcp", "optimizer_0")
"""Files of the optimizer: the Trainer's, accelerate's FSDP's as one file or in shards, Unsloth's in shards."""
_RANDOM = re.compile(r"rng_state(?:_(\d+))?\.pth")
STATE_OF_OURS, NUM_PROCESSES = "unsloth_accel", "num_processes"
"""Keys in trainer_state.json's `stateful_callbacks`: of a run of ours it says how many processes trained."""
EVALUATION_LEFT = "unsloth_accel_evaluation_left"
"""Key there: a stop left this step's evaluation out, which is made by the run that goes on."""

_SHARD = re.compile(r"__(\d+)_\d+\.distcp")
"""A shard of torch.distributed.checkpoint, by the rank that wrote it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory, `…/checkpoint-STEP`, or one that was given another name."""

    path: Path

    @cached_property
    def step(self) -> int:
        """Optimizer step by its name, or by its state where it is called otherwise, such as `last-checkpoint`."""
        named = step_of(self.path)
        step = read_json(self.path / STATE).get("global_step") if named is None else named
        return step if isinstance(step, int) else 0

    @cached_property
    def fault(self) -> str | None:
        """Reason why no run can resume from it, as a clause; None where it is whole."""
        return (
            _state_fault(self)
            or _record_fault(self)
            or next(filter(None, map(_file_fault, sorted(self.path.rglob("*")))), None)
            or _missing(self.path)
        )

    @property
    def has_adapter(self) -> bool:
        """Whether it holds weights that can be loaded, even if no run can go on from it."""
        weights = self.path / ADAPTER_WEIGHTS
        return weights.is_file() and _file_fault(weights) is None

    @property
    def is_recorded_whole(self) -> bool:
        """Whether a record names its files, and they are all there."""
        return bool(self.record) and _record_fault(self) is None

    @cached_property
    def record(self) -> dict[str, Any]:
        """Contents of its record; empty where it has none that can be read."""
        return read_json(self.path / RECORD)

    @property
    def epoch(self) -> float | None:
        """Epochs that were trained when it was saved, with their fraction; None where it doesn't say."""
        epoch = read_json(self.path / STATE).get("epoch")
        return float(epoch) if isinstance(epoch, int | float) else None

    @property
    def made_with(self) -> dict[str, Any]:
        """The facts that its run was made with, by run.yaml's keys; empty where they were not recorded."""
        facts = self.record.get("made_with")
        return facts if isinstance(facts, dict) else {}

    @cached_property
    def in_mid_epoch(self) -> bool:
        """Whether rows of its epoch are still to come; also where that isn't known, as in a stream."""
        steps = self.made_with.get("steps_per_epoch")
        if isinstance(steps, int):
            return self.step % steps != 0
        epoch = read_json(self.path / STATE).get("epoch")  # of a stream it is the share of max_steps
        return "train_dataset" not in self.made_with or not isinstance(epoch, float) or epoch % 1 != 0

    @property
    def adapter_config(self) -> dict[str, Any]:
        """PEFT's adapter_config.json; empty where there is none that can be read."""
        return read_json(self.path / ADAPTER_CONFIG)


def find_checkpoints(directory: str | Path) -> list[Checkpoint]:
    """All checkpoints in a run's directory, whole or not, oldest first."""
    return [Checkpoint(path) for path in RunDirectory(directory).checkpoints()]


def checkpoints(directory: str | Path) -> list[Path]:
    """Return the checkpoints in a run's directory from which a run can resume, oldest first."""
    return [checkpoint.path for checkpoint in find_checkpoints(directory) if checkpoint.fault is None]


def newest(directory: str | Path) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The newest whole checkpoint in a run's directory, and the broken ones that are newer than it, newest first."""
    broken: list[Checkpoint] = []
    for checkpoint in reversed(find_checkpoints(directory)):
        if checkpoint.fault is None:
            return checkpoint, broken
        broken.append(checkpoint)
    return None, broken


def to_go_on(directory: str | Path, how: str = "training.resume=true") -> str:
    """Return the newest whole checkpoint of a run in words, and `how` to go on from it."""
    whole, _ = newest(directory)
    return f"{whole.path.name} is whole: go on with {how}" if whole else "there is no whole checkpoint"


def is_finished(directory: str | Path) -> bool:
    """Return whether a run's directory holds a finished adapter."""
    return (RunDirectory(directory).adapter / ADAPTER_CONFIG).is_file()


def files_of(path: Path) -> dict[str, int]:
    """Every file below a checkpoint by its relative name, with its size in bytes; the record itself is left out."""
    return {name: size for name, size in sizes_below(path).items() if name != RECORD}


def _state_fault(checkpoint: Checkpoint) -> str | None:
    path = checkpoint.path / STATE
    if not path.is_file():
        return f"{STATE}, which the Trainer writes last, is missing"
    step = read_json(path).get("global_step")
    if not isinstance(step, int):
        return f"{STATE} is damaged or cut short"
    return None if step == checkpoint.step else f"{STATE} is of step {step}"


def _record_fault(checkpoint: Checkpoint) -> str | None:
    if not (checkpoint.path / RECORD).is_file():
        return None
    files = checkpoint.record.get("files")
    if not isinstance(files, dict):
        return f"{RECORD} is damaged or cut short"
    for name, size in files.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of its {size} bytes"
    return None


def _file_fault(file: Path) -> str | None:
    """Return a fault in a file's form: safetensors' header gives its size, torch.save's files end with their index."""
    if not file.is_file():
        return None
    if file.name == INDEX:
        return index_fault(file)
    whole = True
    if file.suffix in (".pt", ".pth", ".bin"):
        whole = zipfile.is_zipfile(file)
    elif file.name == ADAPTER_CONFIG:
        whole = bool(read_json(file))
    elif file.suffix == ".safetensors":
        try:
            read_header(file)
        except ConfigError:
            whole = False
    return None if whole else f"{file.name} is damaged or cut short"


def _missing(path: Path) -> str | None:
    weights = (ADAPTER_WEIGHTS, "adapter_model.bin", "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0")
    whole = [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]
    if not whole and not any((path / name).exists() for name in weights):
        return f"{ADAPTER_WEIGHTS} is missing"
    if not any((path / name).exists() for name in _OPTIMIZERS):
        return "optimizer.pt is missing (training.save_only_model leaves it out)"
    for name in ("optimizer_dcp", "optimizer_0", "pytorch_model_fsdp_0"):
        # torch.distributed.checkpoint writes its index after all shards.
        if (path / name).is_dir() and not (path / name / INDEX).is_file():
            return f"{name}/{INDEX}, which is written last, is missing"
    if not (path / "scheduler.pt").is_file():
        return "scheduler.pt is missing"
    return _missing_rank(path)


def is_random_state(name: str) -> bool:
    """Return whether a file of this name holds a rank's random state."""
    return _RANDOM.fullmatch(name) is not None


def _missing_rank(path: Path) -> str | None:
    """Return the fault of a missing random state. How many there must be the record knows; without one the state of a
    run of ours, or else as many as other ranks' files and shards tell: several write numbered ones, so at least two."""
    found = [match for file in path.iterdir() if (match := _RANDOM.fullmatch(file.name))]
    if not found:
        return "rng_state.pth is missing"
    ranks = {int(match[1]) for match in found if match[1]}
    shards = {int(match[1]) for file in path.glob("*/*.distcp") if (match := _SHARD.fullmatch(file.name))}
    ours = read_json(path / STATE).get("stateful_callbacks")
    told = ours.get(STATE_OF_OURS) if isinstance(ours, dict) else None
    count = told.get(NUM_PROCESSES) if isinstance(told, dict) else None
    numbered = max(2, *(number + 1 for number in ranks | shards)) if ranks else 0
    expected = range(count if isinstance(count, int) and count > 1 else numbered)
    gap = next((rank for rank in expected if rank not in ranks), None)
    return None if gap is None else f"rng_state_{gap}.pth is missing"
