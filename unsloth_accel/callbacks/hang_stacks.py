"""The Python stacks of a rank, written to a file when one hangs: its own, and those of one that can't do so itself."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from ..artifacts.run_directory import RunDirectory
from .hang_verdict import Seen
from .heartbeat import Beat

STACKS = signal.SIGRTMIN + 11
"""Signal at which a process writes its stacks, in C, so that a thread that holds on to Python is no hindrance; no
scheduler sends it."""
PATIENCE = 1.0
"""Seconds that a process has for it."""


class Stacks:
    """The file of this rank's stacks in `files`, open from the start: who hangs may not be able to open one."""

    def __init__(self, files: RunDirectory, rank: int) -> None:
        self._files = files
        path = files.rank_stacks(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")  # those of an earlier hang stay
        faulthandler.register(STACKS, file=self._file, all_threads=True)

    def write(self, own: Beat) -> None:
        """Write the stacks of all threads of this process, which stands at `own`."""
        self._file.write(f"{time.ctime()}: rank {own.rank}, process {own.pid}, in {own.place}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)

    def ask(self, one: Seen) -> None:
        """Have a silent rank of this machine write its stacks; of one that is stopped there are none to be had."""
        beat = one.beat
        if one.process != "stopped":
            os.kill(beat.pid, STACKS)
            time.sleep(PATIENCE)
            return
        last = f"it was in {beat.place}" if beat.place else "where it was isn't known"
        text = f"rank {beat.rank}, process {beat.pid}, is stopped and can't be asked for its stacks; {last}\n"
        with self._files.rank_stacks(beat.rank).open("a", encoding="utf-8") as file:
            file.write(f"{time.ctime()}: {text}")

    def close(self) -> None:
        """Remove the file where nothing came to be written."""
        path = Path(self._file.name)
        with suppress(OSError):
            if not path.stat().st_size:
                path.unlink()
