"""Saving the adapter, whole and at once, from every strategy, with what is needed to load it and to know its making.

Mends, in torch 2.13 with accelerate 1.15: in several processes on a CPU the Trainer loads a checkpoint's optimizer to
its device, `cpu:0`, `cpu:1`, …, and torch.load knows only `cpu`, so no run resumes (torch.serialization).
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.own_files import filling
from ..artifacts.run_directory import RunDirectory
from ..config.lora_fields import trained_whole
from ..config.run_config import RunConfig
from ..config.start_adapter import ADAPTER_WEIGHTS
from ..errors import UnslothAccelError, first_line
from ..files import why_unwritten, write_atomically
from ..hardware.ranks import of_every_rank
from ..models.safetensors_header import read_header
from . import fsdp1, rank_checks
from .fsdp2.units import let_go

if TYPE_CHECKING:
    from transformers import Trainer

PACKAGES = ("unsloth_accel", "unsloth", "unsloth_zoo", "torch", "accelerate", "transformers", "trl", "peft", "datasets")


class SaveError(UnslothAccelError):
    """The adapter could not be saved whole."""

    on_every_rank = True

    def __init__(self, message: str, elsewhere: Path | None = None) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere
        """Where the adapter lies instead, whole; on rank 0."""


def save(trained: Any, directory: str | Path, *, tokenizer: Any = None) -> Path:
    """Save the complete adapter of `trained`, a Trainer or a PEFT model, and its tokenizer to `directory`; returns it.

    Works under every strategy: shards are put together first. Every rank must call it; rank 0 writes, to a temporary
    directory that takes `directory`'s place in the end. A Trainer's tokenizer is taken from it; for a model, as
    `Accelerator.prepare` returned it, give it. Raises `SaveError` on every rank when rank 0 could not write, or wrote
    an adapter without all its tensors; if there was room elsewhere the error says where the adapter lies.
    """
    model = trained.model if hasattr(trained, "accelerator") else trained
    tokenizer = tokenizer or getattr(trained, "processing_class", None)
    return _save(model, tokenizer, Path(directory), {}, "save again.")


def save_run(trainer: Trainer, run: RunConfig, elsewhere: Path | None = None) -> Path:
    """`save` a run's adapter to output_dir/adapter, with the files that describe it and versions.json beside it.

    `elsewhere` is where an attempt before this one put it: it is removed, or takes the adapter of now.
    """
    fix = (
        "launch again with training.resume=true if the run has checkpoints (for another output_dir, copy them into it "
        "first)."
    )
    files = RunDirectory(run.output_dir)
    sources = {path.name: path for path in (files.planned_yaml, files.accelerate_yaml)}
    saved = _save(trainer.model, trainer.processing_class, files.adapter, sources, fix, elsewhere)
    if elsewhere is not None:
        shutil.rmtree(elsewhere.parent, ignore_errors=True)
    return saved


def _save(
    model: Any, tokenizer: Any, target: Path, sources: dict[str, Path], fix: str, before: Path | None = None
) -> Path:
    from accelerate import PartialState

    bare = unwrapped(model)
    rank_checks.check_equal(rank_checks.trainable(bare), "trainable weights when saving")
    tensors = gathered(model)
    fault, elsewhere = None, None
    if PartialState().is_main_process:
        try:
            _write(bare, tokenizer, target, sources, tensors)
        except SaveError as error:  # the adapter itself is at fault, not the disk
            fault = f"the adapter was not saved to {target}: {first_line(error)}. Fix: {fix}"
        except Exception as error:  # told to the other ranks, which wait for it
            reason, mend = why_unwritten(error, target.parent)
            fault = f"the adapter was not saved to {target}: {reason}."
            elsewhere = _elsewhere(bare, tokenizer, sources, tensors, before)
            if elsewhere is not None:
                where = f"{elsewhere} on {platform.node()}"
                fault += f" It is complete in {where} instead: copy it before that is cleaned up."
            fault += f" Fix: {mend}, then {fix}"
    raise_on_every_rank(fault, elsewhere)
    return target


def _elsewhere(model: Any, tokenizer: Any, sources: dict[str, Path], tensors: Any, before: Path | None) -> Path | None:
    """Save where there is room, so that a full disk does not cost the training: where it was saved `before`, in the
    system's temporary directory, the working directory or the user's own. Returns where that was."""
    if before is not None:
        with suppress(Exception):
            _write(model, tokenizer, before, sources, tensors)
            return before
    for place in (tempfile.gettempdir, os.getcwd, Path.home):
        with suppress(Exception):
            target = RunDirectory(tempfile.mkdtemp(prefix="unsloth-accel-", dir=place())).adapter
            try:
                _write(model, tokenizer, target, sources, tensors)
                return target
            except Exception:
                shutil.rmtree(target.parent, ignore_errors=True)
    return None


def raise_on_every_rank(fault: str | None, elsewhere: Path | None = None) -> None:
    """Raise `SaveError` with the first rank's `fault`, where one has any; every rank must call it."""
    told = next(filter(None, of_every_rank(fault)), None)
    if told is not None:
        raise SaveError(told, elsewhere)


def unwrapped(model: Any) -> Any:
    """Return the PEFT model inside Accelerate's wrappers."""
    from accelerate.utils import extract_model_from_parallel
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = extract_model_from_parallel(model)
    return model.module if isinstance(model, FullyShardedDataParallel) else model


def gathered(model: Any) -> dict[str, Any] | None:
    """Return what PEFT saves of `model`, gathered from all ranks' shards on the CPU of rank 0 (empty on the others);
    None where each rank holds everything whole.

    Every rank must call it. PEFT itself would write rank 0's shards, or nothing.
    """
    from accelerate import PartialState

    if fsdp1.is_fsdp1(model):
        fsdp1.let_peft_see_through()
        return fsdp1.gathered(model)
    bare = unwrapped(model)
    let_go(model)
    parameters = dict(bare.named_parameters(remove_duplicate=False))
    if not any(map(rank_checks.is_sharded, parameters.values())):
        return None
    first = PartialState().is_main_process
    # Rank 0 chooses for all: PEFT may look the base model up, and ranks that chose otherwise would wait for ever.
    names = of_every_rank(_what_peft_saves(bare, parameters) if first else None)[0]
    found: dict[str, Any] = {}
    for name in names:
        tensor = rank_checks.whole(parameters[name].detach())
        if first:
            found[name] = tensor.cpu()
    return found


def _what_peft_saves(model: Any, parameters: dict[str, Any]) -> list[str]:
    """Return the names of the parameters that PEFT writes for the active adapter, and of all that train."""
    from peft import get_peft_model_state_dict

    # As `training.load_model` has the model save them: embeddings that are trained whole are there once.
    whole = trained_whole(model.peft_config[model.active_adapter].modules_to_save)
    embeddings = False if whole else "auto"
    chosen = get_peft_model_state_dict(
        model, state_dict=parameters, adapter_name=model.active_adapter, save_embedding_layers=embeddings
    )
    identities = {id(tensor) for tensor in chosen.values()}
    return [name for name, tensor in parameters.items() if id(tensor) in identities or tensor.requires_grad]


@functools.cache
def let_numbered_cpus_load() -> None:
    """Teach torch.load that `cpu:N` is the CPU, for resuming in several processes; does nothing the second time."""
    import torch

    def stay_on_cpu(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    # torch asks its own packages first, with priorities from 10; this one answers what they left.
    torch.serialization.register_package(100, lambda storage: None, stay_on_cpu)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter for a result; those not installed are left out."""
    found = {package: next(iter(metadata.distributions(name=package)), None) for package in PACKAGES}
    return {"python": platform.python_version()} | {name: one.version for name, one in found.items() if one}


def _write(model: Any, tokenizer: Any, target: Path, sources: dict[str, Path], tensors: dict[str, Any] | None) -> None:
    with filling(target) as directory:
        model.save_pretrained(str(directory), safe_serialization=True, state_dict=tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
        check_whole(directory, model, tensors)
        for name, source in sources.items():
            if source.is_file():
                shutil.copy(source, directory / name)
        write_atomically(directory / "versions.json", json.dumps(versions(), indent=2) + "\n")


def check_whole(directory: Path, model: Any, tensors: dict[str, Any] | None = None) -> None:
    """Raise `SaveError` if the file holds fewer numbers than the adapter in memory: adapters get saved empty.

    `tensors` is what was gathered, where this rank holds only shards. More are right: PEFT adds the embeddings of a
    model whose vocabulary the adapter changes.
    """
    held = rank_checks.trainable(model) if tensors is None else tensors
    expected = sum(tensor.numel() for tensor in held.values())
    saved = sum(prod(tensor.shape) for tensor in read_header(directory / ADAPTER_WEIGHTS))
    if saved < expected or not saved:
        raise SaveError(f"the file holds {saved} numbers, the adapter has {expected}")
