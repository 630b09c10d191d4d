"""A real launch, watched from outside: what it says and when, which processes are its own, how it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from unsloth_accel.artifacts.run_directory import RunDirectory

MARK = "UNSLOTH_FAULTS_LAUNCH"
"""Environment variable by which a launch's processes are known, whoever their parent has become."""
STARTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "terminal": ("setsid", "--ctty"),
    "nohup": ("nohup",),
    "shell": ("bash", "-c", '"$@"; exit $?', "shell"),
}
"""How a launch is started, by what stands before its command."""
_starting = threading.Lock()
running: set[Watched] = set()
"""Launches that have not been ended yet."""


class Watched:
    """A launch that runs. Times are seconds of `time.monotonic`."""

    def __init__(
        self, command: Sequence[str], start: str, environment: Mapping[str, str], output_dir: Path, directory: Path
    ) -> None:
        """Start it; files below `directory` are named from there on: a trial's name is no word about it."""
        self.mark = uuid.uuid4().hex
        self.output_dir = output_dir
        self._hidden = f"{directory}/"
        self.lines: list[tuple[float, str]] = []
        """What it said on its console, with the time at which it arrived."""
        self._closed = threading.Event()
        ours, theirs = pty.openpty() if start == "terminal" else os.pipe()
        with _starting:
            self.process = subprocess.Popen(
                [*STARTS[start], *command],
                stdin=theirs if start == "terminal" else subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env={**environment, MARK: self.mark},
                start_new_session=start != "terminal",
            )
        os.close(theirs)
        running.add(self)
        self.began = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, source: int) -> None:
        rest = b""
        with suppress(OSError):  # a terminal's end
            while not self._closed.is_set():
                if not select.select([source], [], [], 0.1)[0]:
                    continue
                if not (data := os.read(source, 65536)):
                    break
                *whole, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                self.lines += [(time.monotonic(), self._plainly(line)) for line in whole if line.strip()]
        os.close(source)
        if rest.strip():
            self.lines.append((time.monotonic(), self._plainly(rest)))

    def _plainly(self, line: bytes) -> str:
        return line.decode(errors="replace").replace(self._hidden, "").strip()

    def close_terminal(self) -> None:
        """Close the terminal, by the thread that reads it: while that reads, it stays open."""
        self._closed.set()
        self._reader.join()

    def processes(self) -> list[psutil.Process]:
        """Its living processes, whatever they were started as."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def launcher(self) -> int:
        """The process of `unsloth-accel launch`; below a shell not the first one."""
        for process in self.processes():
            with suppress(psutil.Error):
                if {"unsloth_accel.cli", "launch"} <= {*process.cmdline()} and process.name() != "bash":
                    return process.pid
        raise ProcessLookupError("the launcher has ended")

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `done`, so long; returns whether it was."""
        latest = time.monotonic() + seconds
        while not (found := done()) and time.monotonic() < latest:
            time.sleep(0.1)
        return found

    def ended(self) -> bool:
        return self.process.poll() is not None and not self.processes()

    def end(self) -> list[str]:
        """Kill what is left of it; returns what that was."""
        left = self.processes()
        names = []
        for process in left:
            with suppress(psutil.Error):
                names.append(" ".join(process.cmdline()[:6])[-120:])
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=20)
        self.process.wait()
        self._reader.join(5)
        running.discard(self)
        return names

    def word(self, says: str, since: float) -> tuple[float, str] | None:
        """When after `since` and where it said what matches `says`: on the console, or in a file of its run."""
        for when, line in list(self.lines):
            if when >= since and re.search(says, line, re.IGNORECASE):
                return when, line
        files = RunDirectory(self.output_dir)
        now, wall = time.monotonic(), time.time()
        for file in (*files.rank_errors(), files.launch_error, *files.rank_logs(), *files.rank_outputs()):
            with suppress(OSError):
                if file.stat().st_mtime >= wall - (now - since):
                    for line in map(self._plainly, file.read_bytes().splitlines()):
                        if re.search(says, line, re.IGNORECASE):
                            return now, f"{file.name}: {line}"
        return None

    @property
    def last_line(self) -> str:
        return self.lines[-1][1][-300:] if self.lines else ""
