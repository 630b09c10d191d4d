"""What a script saves on every rank is written by one.

Mends, in Unsloth 2026.10.9 with transformers 5.17 and PEFT 0.21:
- Under DDP every rank writes `model.save_pretrained("out")`, `save_pretrained_merged`, GGUF and the tokenizer to the
  same files at the same time. Here rank 0 does, and the others wait for it, so that each finds the files there. No
  collective: where rank 0 saves alone nobody waits, and what it doesn't come to save within `PATIENCE` a rank saves
  itself.
- A sharded model's `save_pretrained` fails on a CPU, and under FSDP1 saves an empty adapter. Here its adapter is
  gathered, as `adapters.saving.save` does; all ranks must call it. What merges or converts is left to Unsloth where it
  gathers itself, on GPUs under FSDP2, and refused elsewhere.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from ..errors import first_line
from ..files import why_unwritten
from ..hardware.ranks import of_every_rank
from . import environment, fsdp1, rank_checks
from .fsdp2.units import let_go
from .saving import SaveError, gathered, raise_on_every_rank, unwrapped

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

SAVES = ("save_pretrained", "push_to_hub")
"""How the names of methods begin that write, of models and tokenizers, transformers' and Unsloth's."""

PATIENCE = 10.0
"""Seconds that a rank waits for the one that writes to come to the same call."""

_NOTES = "unsloth-accel-saves-"
"""How the names of directories of notes begin."""
DAY = 86_400.0
"""Seconds after which notes are taken as left. Where they weren't, a save waits for `PATIENCE` in vain."""
_place: Path | None = None
"""Directory in which the rank that writes notes what is written; None where there are no others."""
_writes = False
"""Whether this process is the one that writes: rank 0, or the first of each machine with `save_on_each_node`."""
_is_here = True
"""Whether that one runs on this machine, where its notes are."""
_calls: Counter[str] = Counter()
_within = False
"""Whether a save is under way, which may call others of these methods."""
_trainers: WeakKeyDictionary[torch.nn.Module, ref[Trainer]] = WeakKeyDictionary()


def let_one_write(trainer: Trainer) -> None:
    """Have one rank write what is saved of `trainer`'s model and tokenizer; every rank must call it, once.

    A call that says `is_main_process` or gives a `state_dict` has seen to it itself, and is left alone.
    """
    global _place, _writes, _is_here
    args = trainer.args
    _writes = bool(args.should_save)
    _is_here = bool(args.save_on_each_node) or environment.rank() < environment.local_world_size()
    if trainer.accelerator.num_processes == 1:
        return
    if _place is None:
        temporary = Path(tempfile.gettempdir())
        for left in temporary.glob(f"{_NOTES}*"):  # of processes that were killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
        _place = temporary / f"{_NOTES}{of_every_rank(uuid.uuid4().hex)[0]}"
        atexit.register(_leave, _place)
    model = unwrapped(trainer.model)
    _trainers[model] = ref(trainer)
    for holder in (model, trainer.processing_class):
        for name in dir(holder):
            method = getattr(holder, name, None) if name.startswith(SAVES) else None
            if callable(method):  # no closure: models and tokenizers are copied and pickled
                saves = functools.partial(_save, method, name)
                setattr(holder, name, functools.update_wrapper(saves, method))


def once(what: str, directory: str | Path, write: Callable[[], Any]) -> Any:
    """Return what `write` does for the `what` of a `directory`, which one rank calls: the others wait for it.

    Where they can't, before `let_one_write` and on a machine on which no rank writes, they get None. What it returns
    must be such as JSON has, or the others get it as text.
    """
    if _place is None:
        return write() if environment.rank() == 0 else None
    key = f"{what} {os.path.abspath(directory)}"
    _calls[key] += 1
    name = hashlib.sha256(key.encode()).hexdigest()
    if _writes:
        with _held(name) as file:
            value = write()
            if file:
                with suppress(OSError):  # of a full disk: then the others save themselves
                    file.truncate(0)
                    file.write(json.dumps({"times": _calls[key], "value": value}, default=str).encode() + b"\n")
        return value
    if not _is_here:
        return None
    until = time.monotonic() + PATIENCE
    while True:
        with _held(name) as file:
            note = file.read() if file else b""
            said = json.loads(note) if note.endswith(b"\n") else {"times": 0}
            if said["times"] >= _calls[key]:
                return said["value"]
            if not file or time.monotonic() >= until:
                return write()
        time.sleep(0.02)


def _save(method: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method that writes, as one rank."""
    global _within
    if _place is None or _within or "is_main_process" in kwargs or kwargs.get("state_dict") is not None:
        return method(*args, **kwargs)
    _within = True
    try:
        return _save_once(method, name, args, kwargs)
    finally:
        _within = False


def _save_once(method: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    import torch

    holder = getattr(method, "__self__", None)
    target = args[0] if args else kwargs.get("save_directory", kwargs.get("repo_id", ""))
    model = holder if isinstance(holder, torch.nn.Module) else None
    flat = model is not None and fsdp1.is_fsdp1(model)
    if model is None or not (flat or any(map(rank_checks.is_sharded, model.parameters()))):
        return once(f"{type(holder).__name__}.{name}", target, lambda: method(*args, **kwargs))
    if name == SAVES[0] and hasattr(model, "peft_config"):
        return _save_gathered(model, method, args, kwargs)
    if flat or next(model.parameters()).device.type == "cpu":
        fix = f'unsloth_accel.merge(unsloth_accel.save(trainer, "adapter"), {str(target)!r})'
        told = f"{name} can't put together the weights that {rank_checks.running()} divides here. Fix: {fix}"
        raise SaveError(f"{told}, and convert that.")
    let_go(model)
    return method(*args, **kwargs)


def _save_gathered(
    model: torch.nn.Module, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Save the adapter of a sharded model; a collective."""
    from accelerate import PartialState

    trainer = _trainers[model]() if model in _trainers else None
    tensors, fault = gathered(trainer.model if trainer else model), None
    if PartialState().is_main_process:
        try:
            method(*args, **{**kwargs, "state_dict": tensors})
        except Exception as error:  # told to the other ranks, which wait for it
            reason, fix = why_unwritten(error, Path(str(args[0] if args else kwargs.get("save_directory", "."))))
            fault = f"the adapter was not saved: {first_line(error)} ({reason}). Fix: {fix}."
    raise_on_every_rank(fault)


@contextmanager
def _held(name: str) -> Iterator[Any]:
    """Hold a file of this launch, alone; None where there is no room for one, or nobody else."""
    file = None
    if _place is not None:
        with suppress(OSError):
            _place.mkdir(mode=0o700, exist_ok=True)
            file = (_place / name).open("ab+", buffering=0)
    if file is None:
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, also by this process's end
        file.seek(0)
        yield file


def _leave(place: Path) -> None:
    """Remove the directory, as the last of this machine's ranks that end."""
    with suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)  # one that saved nothing may be the first to end
        (place / f"left-{environment.rank()}").touch(exist_ok=False)
        if len([*place.glob("left-*")]) >= environment.local_world_size():
            shutil.rmtree(place, ignore_errors=True)
