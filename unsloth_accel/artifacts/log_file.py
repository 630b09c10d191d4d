"""Files that tell of a run. A disk that can't take them costs the run nothing.

It is told once, on the console, and what was held back is written as soon as there is room again.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from ..files import why_unwritten, write_atomically

_HELD = 2**24
"""Most bytes of a file that are held back, the newest ones: a step's line has some 300."""
_told = False


class LogFile(io.RawIOBase):
    """A file that is written at its end, and raises no `OSError`; as it was opened, or by its path.

    With `anew` the file at a path is emptied first. A fault of one that was opened, the console, isn't told.
    """

    def __init__(self, file: str | Path | io.FileIO, *, anew: bool = False) -> None:
        self._path = None if isinstance(file, io.FileIO) else Path(file)
        self._file: IO[bytes] | io.FileIO | None = file if isinstance(file, io.FileIO) else None
        self._anew = anew
        self._held = b""
        self._lock = threading.RLock()
        self.write(b"")

    def write(self, data: Any) -> int:
        with self._lock:
            self._held += bytes(data)
            self._write_held()
        return len(data)

    def add(self, rows: Iterable[Any]) -> None:
        """Write each of `rows` as a line of JSON, all in one write."""
        self.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def _write_held(self) -> None:
        try:
            if self._file is None and self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
                if self._anew:
                    self._file.truncate(0)
            while self._held and self._file is not None:
                done = self._file.write(self._held)
                if not done:  # a console that can't take it now
                    break
                self._held = self._held[done:]
        except OSError as error:
            self._held = self._held[-_HELD:]
            if self._path is not None:
                tell_unwritten(error, self._path)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return super().fileno() if self._file is None else self._file.fileno()

    def isatty(self) -> bool:
        return self._file is not None and self._file.isatty()

    def as_text(self, like: io.TextIOWrapper | None = None) -> io.TextIOWrapper:
        """Return it as a text file, encoded and buffered `like` another; by default written line by line."""
        if like is None:
            return io.TextIOWrapper(io.BufferedWriter(self), encoding="utf-8", line_buffering=True)
        buffer: Any = self if like.write_through else io.BufferedWriter(self)
        by_line, at_once = like.line_buffering, like.write_through
        return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=by_line, write_through=at_once)


def finite(value: Any) -> Any:
    """Return `value`, or None for a NaN or an infinity, which JSON doesn't have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_or_tell(path: Path, text: str) -> None:
    """Write a file whole, or tell that it can't be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        tell_unwritten(error, path)


def tell_unwritten(error: OSError, path: Path) -> None:
    """Say once in this process that the run's logs can't be written; one process of each machine says it for all."""
    global _told
    if _told or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _told = True
    reason, fix = why_unwritten(error, path.parent)
    said = f"logs can't be written: {reason}; training goes on ({path} is the first)"
    print(f"unsloth_accel: warning: {said}. Fix: {fix}.", file=sys.stderr, flush=True)


def keep_printing() -> None:
    """Let no print end this process, also where the console is gone, or is a file on a full disk."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:  # a notebook's, or a test's
            continue
        raw = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED there is no buffer between
        if isinstance(raw, io.FileIO):
            stream.flush()
            setattr(sys, name, LogFile(raw).as_text(stream))
