"""A launch in a child process of its own (`child_main`): started, waited for, and ended with all that it started.

Each launch gets a fresh process, so that nothing which this one has loaded or set is in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..artifacts.run_directory import RunDirectory
from ..errors import LaunchError
from .child_main import to_json
from .living import carrying
from .run_accelerate import PATIENCE, Launch
from .run_lock import MARK

if TYPE_CHECKING:
    import psutil

MODULE = "unsloth_accel.launch.child_main"
STOPPING = ((signal.SIGINT, PATIENCE + 15.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
"""Signals to a launch that is to end, each with the seconds it may take before the next: the launcher gives its ranks
`PATIENCE` to end a step and save."""


class Child:
    """One launch. `wait` is called again and again while it runs, with the seconds to spend; it may raise."""

    def __init__(self, command: Launch, environment: Mapping[str, str], stdout: int) -> None:
        """Start; `stdout` is a file descriptor, or `subprocess.PIPE`, and gets stderr too."""
        self.command = command
        self.mark = command.environment.get(MARK) or uuid.uuid4().hex
        with uninterrupted() as self._interrupts:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                env={**environment, MARK: self.mark, "PYTHONUNBUFFERED": "1"},
                # An interrupt from the keyboard goes to the whole group; the ranks are told once, by us.
                start_new_session=True,
            )

    def run(self, wait: Callable[[float], None], stopping: Callable[[], None] = lambda: None) -> None:
        """Wait for its end; whatever interrupts that ends all its processes first. `stopping` is called then.

        Raises `LaunchError` where the launch failed, with the failing rank's own words and exit status.
        """
        assert self.process.stdin is not None
        stopped = True
        try:
            if self._interrupts:
                raise KeyboardInterrupt
            with suppress(BrokenPipeError):  # it could not start, and says why
                self.process.stdin.write(to_json(self.command).encode())
                self.process.stdin.close()
            while self.process.poll() is None:
                wait(0.5)
            stopped = False
        finally:
            if stopped:
                stopping()
            self._end(wait)
        if self.process.returncode:
            raise self._failure(self.process.returncode)

    def _end(self, wait: Callable[[float], None]) -> None:
        """End every process of the launch and wait until none is left; returns at once when there is none.

        Raises `LaunchError` with the processes that survive even SIGKILL (stuck in a driver).
        """
        with uninterrupted():
            for number, patience in STOPPING:
                # Of a run that has ended something is left only if its launcher was killed.
                left = self._processes()
                if not left:
                    return
                launcher = [process for process in left if process.pid == self.process.pid]
                # The launcher ends its ranks in order; the harder signals are for whatever didn't listen.
                for process in (launcher or left) if number == signal.SIGINT else left:
                    with suppress(Exception):
                        process.send_signal(number)
                deadline = time.monotonic() + patience
                while time.monotonic() < deadline and (self.process.poll() is None or self._processes()):
                    wait(0.2)
        alive = self._processes()
        if alive:
            numbers = ", ".join(str(process.pid) for process in alive)
            raise LaunchError(f"processes {numbers} of the run can't be ended; they may hold a GPU.", 137)

    def _processes(self) -> list[psutil.Process]:
        return carrying({MARK: self.mark})

    def _failure(self, status: int) -> LaunchError:
        assert self.command.output_dir is not None
        for report in RunDirectory(self.command.output_dir).launch_errors():
            told = json.loads(report.read_text(encoding="utf-8"))
            return LaunchError(told["message"], told["exit_status"], first=told.get("first"), ended=told.get("ended"))
        if status < 0:
            name = signal.Signals(-status).name
            return LaunchError(f"accelerate launch was ended by {name}; its ranks were ended too.", 128 - status)
        return LaunchError(f"accelerate launch ended with exit status {status}; its own error is above.", status)


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Hold interrupts back, and collect them: an impatient second one must not leave ranks running.

    Only the main thread is ever interrupted.
    """
    interrupts: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)
