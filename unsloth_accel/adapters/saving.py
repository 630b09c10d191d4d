"""Saving a finished run: the adapter and everything needed to load it and to know how it came about.

Mends, in torch 2.13 with accelerate 1.15: in several processes on a CPU the Trainer loads a checkpoint's optimizer to
its device, `cpu:0`, `cpu:1`, …, and torch.load knows only `cpu`, so no run resumes (torch.serialization).
"""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing_directory, write_atomically
from ..problems import UnslothAccelError
from ..run_config import RunConfig
from ..validation import ADAPTER
from . import guard

if TYPE_CHECKING:
    from transformers import Trainer

PACKAGES = ("unsloth_accel", "unsloth", "unsloth_zoo", "torch", "accelerate", "transformers", "trl", "peft", "datasets")


class SaveError(UnslothAccelError):
    """The adapter could not be saved whole."""

    on_every_rank = True


def save_run(trainer: Trainer, run: RunConfig) -> Path:
    """Save adapter, tokenizer, run.yaml, accelerate.yaml and versions.json to output_dir/adapter; returns that path.

    Every rank must call it. All ranks' weights are compared, then rank 0 writes to a temporary directory that takes
    the place of an earlier one in the end, so the directory is whole or not there. Raises `SaveError` on every rank
    when rank 0 could not write, or wrote an adapter without all its tensors.
    """
    from accelerate.utils import broadcast_object_list

    target = Path(run.output_dir, ADAPTER)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    guard.check_equal(guard.trainable(model), "trainable weights when saving")
    tensors = gathered(model)
    trainer.accelerator.wait_for_everyone()
    fault: list[str | None] = [None]
    if trainer.accelerator.is_main_process:
        try:
            _write(model, trainer.processing_class, run, target, tensors)
        except Exception as error:  # told to the other ranks, which wait for it
            fault = [f"{type(error).__name__}: {error}"]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(fault)
    if fault[0] is not None:
        raise SaveError(
            f"the adapter was not saved to {target}: {fault[0]} Fix: make room there, then launch again with "
            "training.resume=true if the run has checkpoints (for another output_dir, copy them into it first)."
        )
    return target


def let_numbered_cpus_load() -> None:
    """Teach torch.load that `cpu:N` is the CPU, for resuming in several processes; does nothing the second time."""
    import torch

    global _numbered_cpus_load
    if not _numbered_cpus_load:
        # torch asks its own packages first, with priorities from 10; this one answers what they left.
        torch.serialization.register_package(100, lambda storage: None, _stay_on_cpu)
        _numbered_cpus_load = True


_numbered_cpus_load = False


def _stay_on_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a result; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def gathered(model: Any) -> dict[str, Any] | None:
    """The trainable tensors put together from all ranks' shards, on the CPU; None where each rank holds them whole.

    Every rank must call it. PEFT would otherwise write rank 0's shards, or nothing.
    """
    tensors = guard.trainable(model)
    if not any(guard.is_sharded(tensor) for tensor in tensors.values()):
        return None
    return {name: guard.whole(tensor).cpu() for name, tensor in tensors.items()}


def _write(model: Any, tokenizer: Any, run: RunConfig, target: Path, tensors: dict[str, Any] | None) -> None:
    import json

    with replacing_directory(target) as directory:
        model.save_pretrained(str(directory), safe_serialization=True, state_dict=tensors)
        tokenizer.save_pretrained(str(directory))
        _check_whole(directory, model)
        for name in ("run.yaml", "accelerate.yaml"):
            source = Path(run.output_dir, name)
            if source.is_file():
                shutil.copy(source, directory / name)
        write_atomically(directory / "versions.json", json.dumps(versions(), indent=2) + "\n")


def _check_whole(directory: Path, model: Any) -> None:
    """Raise `SaveError` if the file holds fewer numbers than the adapter in memory: adapters get saved empty.

    More are right: PEFT adds the embeddings of a model whose vocabulary the adapter changes.
    """
    from safetensors import safe_open

    expected = sum(parameter.numel() for parameter in guard.trainable(model).values())
    with safe_open(str(directory / "adapter_model.safetensors"), framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  (no mapping)
    saved = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        saved += size
    if saved < expected:
        raise SaveError(f"the file holds {saved} numbers, the adapter has {expected}.")
