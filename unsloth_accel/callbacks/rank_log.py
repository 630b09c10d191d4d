"""RankLog: the events of one rank, a line of JSON each, so that a crash loses nothing that was told before it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..artifacts.log_file import LogFile, finite
from ..artifacts.run_directory import rank_log


class RankLog:
    """Appends to `directory/rank-N.jsonl`; every line has `time` (Unix seconds), `rank` and `event`.

    A line is one write to a file opened for appending, so that it is there, whole, when the process dies the next
    moment. A fresh run starts the file anew; with `resumed` lines are appended, behind one that a crash cut short.
    Without a `directory` nothing is written, and warnings are told all the same. Lines that can't be written end
    nothing (`artifacts.log_file`).
    """

    def __init__(self, directory: str | Path | None, rank: int, *, resumed: bool = False) -> None:
        self.rank = rank
        self.path = rank_log(directory, rank) if directory is not None else None
        self.warnings: list[dict[str, Any]] = []
        """The lines of all warnings and errors of this rank, in this process."""
        self.untold: list[str] = []
        """Warnings that rank 0's console has not shown yet."""
        self.steps = 0
        """Number of optimizer steps that were logged."""
        self._started = time.perf_counter()
        cut_short = resumed and self.path is not None and _cut_short(self.path)
        self._file = None if self.path is None else LogFile(self.path, anew=not resumed)
        if self._file is not None and cut_short:
            self._file.write(b"\n")

    def start_anew(self) -> None:
        """Forget what was logged until now, also in the file: of an earlier training."""
        self.warnings, self.untold, self.steps = [], [], 0
        self._started = time.perf_counter()
        if self.path is not None:
            self._file = LogFile(self.path, anew=True)

    def write(self, event: str, **fields: Any) -> dict[str, Any]:
        """Append a line and return what it holds; None and numbers that JSON doesn't know are null."""
        return self.write_all(event, [fields])[0]

    def write_all(self, event: str, many: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append a line for each of `many`, in one write."""
        head = {"time": round(time.time(), 3), "rank": self.rank, "event": event}
        lines = [
            {**head, **{key: finite(round(one, 6) if isinstance(one, float) else one) for key, one in fields.items()}}
            for fields in many
        ]
        if self._file is not None and lines:
            self._file.add(lines)
        return lines

    def warn(self, source: str, message: str, step: int, *, event: str = "warning", **fields: Any) -> None:
        """Append a `warning` or `error` line; rank 0 tells it at the next log (`tell`), once."""
        self.warnings.append(self.write(event, source=source, step=step, message=message, **fields))
        self.untold.append(f"step {step}: {message}")

    def failed(self, error: BaseException) -> None:
        """Append the `end` line of a run that `error` ended."""
        seconds = time.perf_counter() - self._started
        message = " ".join(str(error).split()) or type(error).__name__
        self.write("end", steps=self.steps, seconds=seconds, status="failed", message=message)

    def tell(self) -> None:
        """Show on rank 0's console what all ranks have not told yet; every rank must call it."""
        from ..hardware.ranks import of_every_rank

        for rank, messages in enumerate(of_every_rank(self.untold)):
            self._show(rank, messages)
        self.untold = []

    def tell_own(self) -> None:
        """Show on rank 0 what it has not told itself; needs no other rank."""
        if self.rank == 0:
            self._show(0, self.untold)
            self.untold = []

    def _show(self, rank: int, messages: Sequence[str]) -> None:
        for message in messages if self.rank == 0 else ():
            print(f"unsloth_accel: rank {rank}, {message}", file=sys.stderr, flush=True)


def _cut_short(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:  # none, or one without a last byte
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False
