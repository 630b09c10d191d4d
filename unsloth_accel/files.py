"""Atomic writing of files and directories, and tests for them that take any name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

is_directory, is_file = os.path.isdir, os.path.isfile
"""Tests that are False for a name no file can have, at which `Path.is_dir` and `Path.is_file` raise."""


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, making its directory; `path` holds the old text or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def replacing_directory(path: str | Path, kept: Callable[[Path], Iterable[Path]] = lambda old: ()) -> Iterator[Path]:
    """Yield a temporary directory beside `path` that takes its place when the block ends well.

    A directory can't be replaced in one step; the old one is moved aside first, and moved back if that fails. `kept`
    gives the files of the old one, where it then is, that move to the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                os.chmod(file, 0o644)  # safetensors writes files that only their owner may read
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        for file in kept(old) if old.exists() else ():
            place = path / file.relative_to(old)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(place):
                os.rename(file, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
