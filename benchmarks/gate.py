"""Gate: many runs import their packages at once, and then train one after the other, each with all GPUs to itself.

Importing Unsloth takes a GPU machine up to a minute, which a call with a time limit can't spend on every run. Each
process of a run waits at its gate once it has imported everything and before it loads anything (`benchmarks.worker`).
Loading and compiling take half a minute more: runs of a `Wave` do that side by side, too, and only the steps that are
timed come one after the other.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.pauses import GATE, PAUSES
from benchmarks.tables import ROOT
from benchmarks.worker import MODULE
from unsloth_accel.planning.plan import Plan
from unsloth_accel.verify.runs import Trained, train

TIMEOUT = 300.0
"""Seconds that a run may take once its gate is open, the turns of others in its wave included."""
HOLD = "BENCHMARK_HOLD"
"""Variable with a file without which nothing trains: what needs no clock may run before, beside the imports."""
IMPORT_TIMEOUT = 180.0
"""Seconds in which all runs should have imported their packages; after them the first starts all the same."""
WARM_UP_TIMEOUT = 150.0
"""Seconds in which all runs of a wave should have come to their first pause; after them the others go on."""


@dataclass(frozen=True)
class Gate:
    path: Path
    """The file that opens it."""
    processes: int
    pauses: tuple[int, ...] = ()
    """Steps after which the run waits again; after the last of them it only says that it is there."""

    def after(self, step: int) -> Gate:
        """Return the gate at which the run waits after `step`."""
        return Gate(self.path.with_name(f"{self.path.name}-after-{step}"), self.processes)

    def seconds(self) -> dict[int, float]:
        """Return what the steps from one pause to the next took, by the step before the first of them."""
        told = json.loads(self.path.with_name(f"{self.path.name}.seconds").read_text(encoding="utf-8"))
        return {int(step): seconds for step, seconds in told.items()}

    def open(self) -> None:
        self.path.touch()

    def is_reached(self) -> bool:
        """Whether all processes have imported what they need."""
        return len(list(self.path.parent.glob(f"{self.path.name}.ready-*"))) == self.processes

    def train(self, decided: Plan, environment: Mapping[str, str], stopped: threading.Event) -> Trained:
        """Train `decided` once the gate is open; `stopped` ends a run that still waits.

        Raises `TimeoutError` where it is stopped or takes longer than `TIMEOUT`, `LaunchError` where it fails.
        """
        return train(decided, self._waiting(stopped), {**environment, **self._variables()}, module=MODULE)

    def run(self, command: Sequence[str], log: Path, environment: Mapping[str, str], stopped: threading.Event) -> None:
        """Run `command`, a launch of a script that waits at the gate by itself; `log` gets what it prints.

        Raises `TimeoutError` as `train` does, and `RuntimeError` with the end of the log where it fails.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        wait = self._waiting(stopped)
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**environment, **self._variables()}, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    wait(0.2)
            finally:
                if process.poll() is None:
                    process.terminate()  # accelerate's launcher then ends its ranks
                    process.wait(30)
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {log.read_text(errors='replace')[-1500:]}")

    def _variables(self) -> dict[str, str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Its own cache of compiled code: processes of several runs that write the same one read half a file.
        compiled = self.path.parent.with_name("compiled") / self.path.name
        pauses = ",".join(map(str, self.pauses))
        return {GATE: str(self.path), PAUSES: pauses, "UNSLOTH_COMPILE_LOCATION": str(compiled)}

    def _waiting(self, stopped: threading.Event) -> Callable[[float], None]:
        """Return what sleeps for the seconds that it is given, and raises `TimeoutError` where the run is to end."""
        opened: list[float] = []

        def wait(seconds: float) -> None:
            if not opened and self.path.exists():
                opened.append(time.perf_counter())
            if opened and time.perf_counter() > opened[0] + TIMEOUT:
                raise TimeoutError(f"not done after {TIMEOUT:.0f} s")
            if stopped.is_set() and not opened:
                raise TimeoutError("not started")
            time.sleep(seconds)

        return wait


@dataclass(frozen=True)
class Job:
    """A run that waits at its gate."""

    name: str
    gate: Gate
    measure: Callable[[threading.Event], dict[str, Any]]
    """Runs it, and returns its figures; the event ends one that still waits."""


def in_turns(
    turns: Sequence[Sequence[Job]], may_go_on: Callable[[], bool], imported: Callable[[], None] = lambda: None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Start all jobs at once, and let them train turn by turn, those of one turn side by side; yield each with its
    figures. `imported` is called when all have imported their packages; no turn begins once `may_go_on` says no."""
    jobs = list(itertools.chain.from_iterable(turns))
    stopped = threading.Event()
    with ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        running = {job.name: pool.submit(job.measure, stopped) for job in jobs}
        try:
            wait_for_imports((running[job.name], job.gate) for job in jobs)
            imported()
            for turn in turns:
                if not may_go_on():
                    return
                for job in turn:
                    job.gate.open()
                for job in turn:
                    yield job, running[job.name].result()
        finally:
            stopped.set()  # whoever waits at a gate would wait for ever, and hold a GPU


@dataclass(frozen=True)
class Wave:
    """Runs that load and warm up side by side. One without pauses trains to its end meanwhile: its time isn't told."""

    jobs: Sequence[Job]
    legs: Sequence[Sequence[tuple[Job, int]]] = field(default=())
    """What then runs alone, leg by leg: jobs that go on side by side, each after the step at which it pauses."""


def in_waves(
    waves: Sequence[Wave], may_go_on: Callable[[int], bool], told: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Start the jobs of all waves at once, and let them train wave by wave; yield each with its figures. No wave begins
    once `may_go_on`, which is given its number, says no; `told` hears of what goes on."""
    jobs = [job for wave in waves for job in wave.jobs]
    stopped = threading.Event()
    with ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        running = {job.name: pool.submit(job.measure, stopped) for job in jobs}
        try:
            wait_for_imports((running[job.name], job.gate) for job in jobs)
            told("packages imported")
            for number, wave in enumerate(waves):
                if not may_go_on(number):
                    return
                for job in wave.jobs:
                    job.gate.open()
                yield from _warmed_up(wave, running)
                told(f"warmed up: wave {number + 1} of {len(waves)}")
                yield from _alone(wave, running)
        finally:
            stopped.set()  # whoever waits at a gate would wait for ever, and hold a GPU
            for job in jobs:
                for step in job.gate.pauses:
                    job.gate.after(step).open()


def _warmed_up(wave: Wave, running: Mapping[str, Future[Any]]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Return when all have come to their first pause; yield those that have none, at their ends."""
    for job in wave.jobs:
        if not job.gate.pauses:
            yield job, running[job.name].result()
    pausing = [(running[job.name], job.gate.after(job.gate.pauses[0])) for job in wave.jobs if job.gate.pauses]
    latest = time.perf_counter() + WARM_UP_TIMEOUT
    while time.perf_counter() < latest and not all(run.done() or gate.is_reached() for run, gate in pausing):
        time.sleep(0.1)


def _alone(wave: Wave, running: Mapping[str, Future[Any]]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run the legs; yield each job after its last one, when it has ended."""
    for leg in wave.legs:
        for job, step in leg:
            job.gate.after(step).open()
        for job, step in leg:
            following = job.gate.pauses[job.gate.pauses.index(step) + 1]
            there = job.gate.after(following)
            while not running[job.name].done() and not there.is_reached():
                time.sleep(0.02)
            if following == job.gate.pauses[-1]:
                yield job, running[job.name].result()


def wait_for_imports(runs: Iterable[tuple[Future[Any], Gate]]) -> None:
    """Return when every run has ended or reached its gate, or after `IMPORT_TIMEOUT`; with `HOLD` set, once its file is
    there, too."""
    waiting, latest = list(runs), time.perf_counter() + IMPORT_TIMEOUT
    while time.perf_counter() < latest and not all(run.done() or gate.is_reached() for run, gate in waiting):
        time.sleep(0.5)
    held = os.environ.get(HOLD)
    while held and not Path(held).exists():
        time.sleep(0.2)
