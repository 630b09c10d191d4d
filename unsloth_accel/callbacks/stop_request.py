"""Stop request: a signal to this process, or the end of its launcher, that asks a rank to save and end.

While it trains, ranks agree on the step after which they stop (`step_agreement`); a thread ends the process at once
where there is nothing to save, as before the first step, and where no step ends in time.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..adapters import environment
from ..artifacts import checkpoints
from ..config.promise import PLANNED
from ..errors import UnslothAccelError
from ..launch.broken_streams import leave_broken_streams
from ..launch.living import carrying
from ..launch.run_accelerate import SIGNALS

GONE = 100
"""Stands where a signal's number does, for a launcher that is gone."""
PATIENCE = 25.0
"""Seconds within which a step must end; torchrun's agent kills a rank 30 seconds after its SIGTERM."""
SAVING = 300.0
"""Seconds that a rank may take to save once all have agreed to stop. Where the launcher lives, it has less patience."""
_OF_ONE_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class Stopped(UnslothAccelError, SystemExit):
    """The end of a rank that was asked to stop. A script that doesn't catch it leaves with its exit status: 128 and the
    signal's number, and 143, as after SIGTERM, where the launcher was gone."""

    def __init__(self, message: str, number: int, *, on_every_rank: bool = False) -> None:
        super().__init__(message)
        self.exit_status = self.code = 128 + (signal.SIGTERM if number == GONE else number)
        self.on_every_rank = on_every_rank


def cause(number: int) -> str:
    return "the end of its launcher" if number == GONE else signal.Signals(number).name


def planned() -> bool:
    """Return whether this is a rank of `unsloth-accel launch RUN.yaml`."""
    promised = environment.promise()
    return promised is not None and promised.made_by == PLANNED


def to_go_on(output_dir: str | Path) -> str:
    """Return the newest whole checkpoint of a run in words, and how to go on from it."""
    return checkpoints.to_go_on(output_dir, "training.resume=true" if planned() else "resume_from_checkpoint=True")


class StopRequest:
    """What this process is asked, by a signal that nobody else here handles or by the end of its launcher.

    `number`: the signal, or `GONE`; 0 as long as nothing is asked.
    """

    def __init__(self) -> None:
        self.number = 0
        self._when = ""
        self._directory: str | Path | None = None
        self._output: Path | None = None
        self._tell: list[Callable[[Stopped], object]] = []
        self._held = 0
        self._agreed = self._listens = self._begun = False
        self._deadline = 0.0

    def know(
        self, directory: str | Path, output: Path | None = None, tell: Callable[[Stopped], object] | None = None
    ) -> None:
        """Let it know a run's output_dir, where the newest checkpoint is looked for; the file for what would be printed
        to a terminal that is gone; and whom to tell, too, why a rank is ended from outside of its main thread."""
        self._directory, self._output = directory, output or self._output
        self._tell += [tell] if tell else []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in this block, in the main thread alone. Handlers that were set before stay, and so does a signal that
        is ignored (nohup)."""
        if self._listens or threading.current_thread() is not threading.main_thread():
            yield
            return
        parent = environment.LAUNCHER
        usual = (signal.SIG_DFL, signal.default_int_handler)
        # Where nobody launched it, Ctrl-C means this moment.
        mine = [one for one in SIGNALS if signal.getsignal(one) in usual and (parent or one != signal.SIGINT)]
        self._listens, self.number, self._agreed = True, 0, False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Written to even while the main thread waits for another rank and runs no handler.
        wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        if wakes != -1:  # an event loop's
            signal.set_wakeup_fd(wakes)
        before = {one: signal.signal(one, lambda number, frame: self._ask(number)) for one in mine}

        def undo() -> None:
            for one, handler in before.items():
                signal.signal(one, handler)
            last = signal.set_wakeup_fd(-1)
            if last != writer:
                signal.set_wakeup_fd(last)
            self._listens = False

        _in_forks.append(undo)
        thread = threading.Thread(target=self._watch, args=(reader, parent, {*mine}), daemon=True, name="stop request")
        thread.start()
        try:
            yield
        finally:
            _in_forks.remove(undo)
            undo()
            os.write(writer, b"\0")
            thread.join()
            os.close(writer)
            os.close(reader)

    def hold(self) -> None:
        """Let a stop wait for a step's end, once the first begins."""
        self._held += 1

    def begin(self) -> None:
        """Take it that the first step begins, or that none is left: there is something to save. Rows that are rehearsed
        or evaluated before are nothing that a stop would wait for."""
        self._begun = True

    def release(self, when: str = "") -> None:
        """End what one `hold` began; since `when`, in words, there is nothing to save any more."""
        self._held -= 1
        self._begun = self._begun and self._held > 0
        self._when = when or self._when

    def agreed(self) -> None:
        """Take it that all ranks stop now, and save."""
        self._agreed, self._deadline = True, time.monotonic() + SAVING

    def _ask(self, number: int) -> None:
        if not self.number:
            self._deadline = time.monotonic() + PATIENCE
            self.number = number

    def _watch(self, reader: int, parent: int | None, mine: set[int]) -> None:
        while True:
            if select.select([reader], [], [], 1.0)[0]:
                for number in os.read(reader, 64):
                    if not number:
                        return
                    if number in mine:
                        self._ask(number)
            if parent is not None and os.getppid() != parent:
                self._ask(GONE)
            if not self.number:
                continue
            leave_broken_streams(self._output)
            if not self._agreed and _a_peer_is_gone(parent):  # no step will end, and its fall is what has to be told
                os._exit(Stopped("", self.number).exit_status)
            if not self._agreed and not (self._held and self._begun):
                self._leave(f" {self._when or 'before it trained'}", goes_on=not self._when)
            if time.monotonic() > self._deadline:
                self._leave(f", as no step ended within {PATIENCE:.0f} s")

    def _leave(self, when: str, *, goes_on: bool = True) -> None:
        """Tell `when` it ends, and what to go on from, and end this process, whatever its main thread does."""
        status = Stopped("", self.number).exit_status
        threading.Timer(5.0, os._exit, (status,)).start()  # where a disk, or telling, hangs, too
        left = f"; {to_go_on(self._directory)}" if goes_on and self._directory else ""
        stopped = Stopped(f"ended by {cause(self.number)}{when}{left}.", self.number)
        for tell in self._tell:
            with suppress(Exception):
                tell(stopped)
        with suppress(Exception):
            os.write(2, f"unsloth_accel: rank {environment.rank()}: {stopped}\n".encode())
            sys.stdout.flush()
        if self.number == GONE and self._held:
            time.sleep(2.0)  # its peers tell, too
            _end_peers()
        os._exit(status)


def follow_launcher() -> None:
    """Have this process get a SIGTERM when its launcher is gone: for a loop of a user's own, which saves as it sees
    fit. Does nothing in a process that nobody launched, and the second time."""
    if environment.LAUNCHER and not any(thread.name == "follow launcher" for thread in threading.enumerate()):
        threading.Thread(target=_follow, daemon=True, name="follow launcher").start()


def _follow() -> None:
    while os.getppid() == environment.LAUNCHER:
        time.sleep(1.0)
    leave_broken_streams()
    os.kill(os.getpid(), signal.SIGTERM)


def _end_peers() -> None:
    """End the other ranks of this machine, whose launcher is gone: one that is stopped (SIGSTOP) can't end itself."""
    import psutil

    launch = {name: os.environ.get(name, "") for name in _OF_ONE_LAUNCH}
    for process in carrying(launch) if all(launch.values()) else ():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and "LOCAL_RANK" in process.environ():
                process.kill()


def _a_peer_is_gone(parent: int | None) -> bool:
    """Whether another rank of this machine has ended, after which its launcher ends the others with SIGTERM."""
    import psutil

    count = environment.local_world_size()
    if count == 1 or parent is None or os.getppid() != parent:
        return False
    alive = 0
    try:
        launcher = psutil.Process(parent)
        if "LOCAL_RANK" in launcher.environ():  # a shell of this rank's own between the two
            return False
        for process in launcher.children():
            with suppress(psutil.NoSuchProcess):
                ended = process.status() == psutil.STATUS_ZOMBIE
                alive += not ended and "LOCAL_RANK" in process.environ()
    except psutil.Error:  # who may not look knows nothing
        return False
    return alive < count


_in_forks: list[Callable[[], None]] = []
"""What a process forked from this one undoes: its pools end their workers with SIGTERM, which are no ranks."""


def _undo_in_fork() -> None:
    while _in_forks:
        _in_forks.pop()()


os.register_at_fork(after_in_child=_undo_in_fork)

REQUEST = StopRequest()
"""This process's one: so are its signals."""
