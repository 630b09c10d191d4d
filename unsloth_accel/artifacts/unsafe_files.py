"""Files that hold code in the place of weights: told with what to do, never run. Reads no file with torch.

Torch loads weights alone (`weights_only`) and refuses everything else, with advice to trust the file. It makes two
exceptions, in sharded checkpoints (torch.distributed.checkpoint, torch 2.13): their index is unpickled whatever it
holds, which is looked at here before, and so is what isn't a tensor, which `weights_only` stops.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ..errors import UnslothAccelError

INDEX = ".metadata"
"""File in a directory of shards that says what is where."""
_OF_AN_INDEX = re.compile(
    r"torch\.distributed\.checkpoint[\w.]*:_*[A-Z]\w*|torch:(Size|b?float\w*|u?int\w*|complex\w*|bool)"
    r"|torch\.serialization:_get_layout|pathlib:\w*Path|collections:OrderedDict"
)
_GLOBAL = re.compile(r"GLOBAL (\S+)|`?([\w.]+)`? was not an allowed global")
_FIX = "go on from another checkpoint, or take the file from where you trust: no run of unsloth-accel writes such a one"


class UnsafeFile(UnslothAccelError):
    """A file holds more than weights, and was not loaded."""


def weights_only(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have torch load weights alone in this process, also where its caller would load anything."""
    if not environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def index_fault(file: Path) -> str | None:
    """Return what is wrong with an index of shards, as a clause; None where it holds what such a one does."""
    name = f"{file.parent.name}/{file.name}"
    try:
        with file.open("rb") as text:
            _Reader(text).load()
    except UnsafeFile as found:
        return f"{name} holds code ({found}), which would run when it is loaded"
    except Exception:  # whatever a pickle that was cut short does
        return f"{name} is damaged or cut short"
    return None


def as_unsafe(error: BaseException) -> UnsafeFile | None:
    """Return the error to show where torch refused to load a file in `error`; None for another one."""
    if not isinstance(error, pickle.UnpicklingError) and "Weights only load failed" not in str(error):
        return None
    found, trace, file = _GLOBAL.search(str(error)), error.__traceback__, "a file of shards"
    while trace:
        code, given = trace.tb_frame.f_code, trace.tb_frame.f_locals.get("f")
        if code.co_name == "load" and code.co_filename.endswith("serialization.py") and isinstance(given, str | Path):
            file = str(given)
        trace = trace.tb_next
    what = f"holds code ({found[1] or found[2]}), not weights alone" if found else "is damaged, or holds code"
    return UnsafeFile(f"{file} {what}: it was not loaded. Fix: {_FIX}.")


class _Nothing:
    """Stands for every class that an index may name: none is needed to read its form."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if _OF_AN_INDEX.fullmatch(f"{module}:{name}"):
            return _Nothing
        raise UnsafeFile(f"{module}.{name}")
