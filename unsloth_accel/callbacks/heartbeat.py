"""Heartbeat: the file in which a rank says once a second that it lives, where it is and how far it has come.

A thread of its own writes it; the training thread sets a number now and then (`callbacks.pulse`, `callbacks.phases`)
and nothing else: where it is, the other thread reads from its stack. With each beat `watchdog` may look at the others'.

Times are sums of the seconds between beats, each counted as `LONGEST` at most: a machine that slept, a container that
was frozen and a debugger that held the whole process make nobody's time longer.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..files import this_machine
from ..launch.living import state_of
from .signs_of_work import Signs, own_signs
from .stack_place import look_at

BEAT = 1.0
"""Seconds between two beats."""
LONGEST = 3 * BEAT
TRAINING = "training"
"""Phase in which steps are made."""
SIZE = 2048
"""Bytes of a heartbeat, always the same: written over in one call, which a full disk has no part in."""
QUIET = 5.0
"""Seconds without progress from which on more is looked at than the stack."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    started: float
    """When its process was (`living.state_of`): another process with its number has another."""
    beats: int = 0
    """Number of the beat: it grows as long as the rank lives."""
    phase: str = ""
    """Part of the run, as `phases.phase` calls it."""
    step: int = 0
    """Optimizer steps of the run that were made."""
    steps: int = 0
    """Those of this process: in the first, everything is compiled."""
    events: int = 0
    """Number of what happened to the training so far, which is the same on ranks that have come equally far."""
    idle: float = 0.0
    """Seconds since anything happened to the training, or it came from a part of each step to something else."""
    still: float = 0.0
    """Seconds since anything moved in its stack."""
    slowest: float = 0.0
    """Seconds of its slowest step, the first left out."""
    place: str = ""
    strict: bool = False
    waits: bool = False
    paused: bool = False
    """What `stack_place.Place` has."""
    working: bool = True
    transferring: bool = True
    """Whether its process takes a processor's time, and whether it reads, writes, sends or receives."""
    collectives: int | None = None
    """Collectives that it has begun; None where torch doesn't tell."""


class Heartbeat:
    """The heartbeat of this process, in the file `path`; `start` it in the thread that trains.

    With `whole_run` it is judged all the time; else only while a Trainer trains, as in a script of the user's own, of
    whose other code nobody knows what it does. `look` is called after each beat, with the beat and the seconds since
    the one before. Nothing that fails here reaches the training.
    """

    def __init__(
        self, path: Path, rank: int, look: Callable[[Beat, float], None] | None = None, *, whole_run: bool = True
    ) -> None:
        self.path = path
        self.phase = self._before = ""
        self.step = self.steps = self.events = 0
        self.slowest = 0.0
        self._whole_run = self._watched = whole_run
        self.spent = 0.0
        """Seconds of a processor that its thread took."""
        self.beat = Beat(rank=rank, host=this_machine(), pid=os.getpid(), started=state_of(os.getpid())[1])
        self.thread = threading.get_ident()
        """The thread that trains."""
        self._look = look
        self._position = 0
        self._signs: tuple[float, Signs] | None = None
        self._working = self._transferring = True
        self._stop = threading.Event()
        self._runner = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._runner.start()

    def stop(self) -> None:
        """End it and remove its file: who has none is neither waited for nor judged."""
        self._stop.set()
        if self._runner.is_alive() and threading.current_thread() is not self._runner:
            self._runner.join(2 * BEAT)
        with suppress(OSError):
            self.path.unlink()

    def progress(self) -> None:
        """Note that something happened to the training."""
        self.events += 1

    def enter(self, phase: str) -> str:
        """Note that a part of the run begins; returns the one before."""
        before, self.phase = self.phase, phase
        return before

    def training(self, step: int) -> None:
        """Note that a Trainer begins to train in this thread, after `step` steps."""
        self.thread, self.step, self._watched = threading.get_ident(), step, True
        self.steps, self.slowest = 0, 0.0  # of an earlier Trainer in the same script
        self._before = self.enter(TRAINING)
        self.progress()

    def stepped(self, step: int, seconds: float) -> None:
        """Note the end of a step and how long it took."""
        if self.steps:
            self.slowest = max(self.slowest, seconds)
        self.step, self.steps = step, self.steps + 1
        self.progress()

    def trained(self) -> None:
        """Note that the Trainer has ended."""
        self.enter(self._before)
        self._watched = self._whole_run
        self.progress()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(BEAT):
            now = time.monotonic()
            passed, before = min(now - before, LONGEST), now
            with suppress(Exception):
                self.write(passed)
            if self._look is not None:
                with suppress(Exception):
                    self._look(self.beat, passed)
            self.spent = time.thread_time()

    def write(self, passed: float) -> None:
        """Take the next beat, `passed` seconds after the one before, and write it."""
        last, (place, position) = self.beat, look_at(self.thread)
        strict = place.strict and self.steps > 0 and self.phase == TRAINING
        moved = self.events != last.events
        # From a part of every step to what may take long, or back: each has its own time.
        idle = 0.0 if moved or strict != last.strict or self.phase != last.phase else last.idle + passed
        still = 0.0 if moved or position != self._position else last.still + passed
        self._position = position
        self._examine(idle)
        self.beat = replace(
            last,
            beats=last.beats + 1,
            phase=self.phase,
            step=self.step,
            steps=self.steps,
            events=self.events,
            idle=round(idle, 3),
            still=round(still, 3),
            slowest=round(self.slowest, 3),
            place=place.what[:300],
            strict=strict,
            waits=place.waits,
            paused=place.paused,
            working=self._working,
            transferring=self._transferring,
            collectives=collectives_begun() if idle >= QUIET else None,
        )
        write_beat(self.path, self.beat)

    def _examine(self, idle: float) -> None:
        """Look every now and then whether this process works; it is taken for granted until it was looked at twice."""
        if idle < QUIET or not self._watched:
            self._signs, self._working, self._transferring = None, True, True
        elif self._signs is None or idle - self._signs[0] >= QUIET:
            before, now = self._signs, own_signs()
            self._signs = (idle, now)
            if before is not None:
                self._working = now.working(before[1], idle - before[0])
                self._transferring = now.transferring(before[1], idle - before[0])


def write_beat(path: Path, beat: Beat) -> None:
    """Write `beat` over the one before. Opened and closed each time, at which a network's file system passes it on."""
    text = json.dumps(vars(beat)).encode().ljust(SIZE - 1) + b"\n"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, text, 0)
    finally:
        os.close(file)


def read_beat(path: Path) -> Beat | None:
    """The heartbeat in a file; None where there is none, or half of one."""
    try:
        values = json.loads(path.read_bytes())
        return Beat(**{one.name: values[one.name] for one in fields(Beat)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def process_state(beat: Beat) -> str | None:
    """The state of a rank's process on this machine, a letter of proc(5); None where it has ended."""
    state, started = state_of(beat.pid)
    return state if state and started == beat.started else None


def collectives_begun() -> int | None:
    """Collectives that torch has begun in this process, by its flight recorder; None where it has none."""
    record = flight_record(only_status=True)
    try:
        groups = json.loads(record or "")["pg_status"].values()
        return sum(int(group["last_enqueued_collective"]) for group in groups)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def flight_record(*, only_status: bool = False) -> str | None:
    """What torch's flight recorder holds, as JSON; None where torch has none."""
    torch = sys.modules.get("torch._C._distributed_c10d")
    dump = getattr(torch, "_dump_fr_trace_json", None)
    if dump is None:
        return None
    record = dump(not only_status)
    return record.decode() if isinstance(record, bytes) else str(record)


_own: Heartbeat | None = None


def own() -> Heartbeat | None:
    """The heartbeat of this process, where it has one."""
    return _own


def begin(heartbeat: Heartbeat) -> None:
    """Make `heartbeat` this process's and start it; it stops when the process ends."""
    import atexit

    global _own
    _own = heartbeat
    atexit.register(heartbeat.stop)
    heartbeat.start()


def enter(phase: str) -> str:
    """Tell the heartbeat, where there is one, that `phase` begins; returns the one before."""
    return "" if _own is None else _own.enter(phase)
