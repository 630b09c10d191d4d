"""Cells on several GPUs: one launch for each model and strategy, which loads once and trains all its cells.

All launches import their packages at the beginning and wait before they load anything (benchmarks.worker), so that the
machine is held up by that once, and only one trains at a time. A rank that runs out of memory while the others don't
leaves them waiting: after `PATIENCE` seconds without a figure the launch is ended, and what is left of its cells gets
another one; so cells that may not fit belong at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate, wait_for_imports
from benchmarks.loaded import Cell
from benchmarks.loaded_ranks import JOB
from benchmarks.pauses import GATE
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.errors import LaunchError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.launch.child import Child
from unsloth_accel.launch.launcher import launch_of, made_room
from unsloth_accel.planning.planner import plan

MODULE = "benchmarks.loaded_ranks"
PATIENCE = 90.0
"""Seconds that a launch may take for a cell; loading, for the first one, has `LOADING` more."""
LOADING = 90.0
LAUNCHES_AT_ONCE = 8
"""Launches that wait with their packages imported; each process holds about 3 GiB of the machine's memory."""

Figures = dict[str, Any]


@dataclass(kw_only=True)
class Job:
    """One launch: cells of one model and strategy."""

    cells: Sequence[Cell]
    work: Path
    steps: int
    warm_up: int
    name: str
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    ended: threading.Event = field(default_factory=threading.Event)
    """Set by whoever wants it to end at once."""

    @property
    def directory(self) -> Path:
        return self.work / "jobs" / self.name

    @property
    def gate(self) -> Gate:
        return Gate(self.directory / "gate", self.cells[0].processes)

    @property
    def figures(self) -> Path:
        return self.directory / "figures.jsonl"

    @property
    def stop(self) -> Path:
        return self.directory / "stop"

    def run(self, hardware: Hardware) -> None:
        """Launch and wait for the end; raises `LaunchError` where it fails."""
        on_cpu = not hardware.devices
        # Unsloth takes no longer rows than it loaded the model for.
        longest = max(self.cells, key=lambda cell: cell.length).run(self.work, self.steps, on_cpu=on_cpu)
        decided = plan(replace(longest, output_dir=str(self.directory / "run")), hardware)
        own = {
            JOB: str(self.directory / "job.json"),
            GATE: str(self.gate.path),
            # Its own cache of compiled code: processes of several launches that write the same one read half a file.
            "UNSLOTH_COMPILE_LOCATION": str(self.directory / "compiled"),
        }
        command = launch_of(decided, module=MODULE)
        with made_room(decided) as launched, RunDirectory(decided.run.output_dir).verify_log.open("wb") as log:
            command = replace(command, environment=command.environment | launched)
            Child(command, self.environment | own, log.fileno()).run(self._wait)

    def write(self) -> None:
        """Write what its processes are to train, and remove what an earlier one left."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for earlier in (self.figures, self.stop, *self.directory.glob("gate*")):
            earlier.unlink(missing_ok=True)
        job = {
            "cells": [asdict(cell) for cell in self.cells],
            "work": str(self.work),
            "steps": self.steps,
            "warm_up": self.warm_up,
            "figures": str(self.figures),
            "stop": str(self.stop),
        }
        (self.directory / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def done(self) -> list[Figures]:
        """Return the figures of the cells that are done, in their order."""
        text = self.figures.read_text(encoding="utf-8") if self.figures.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _wait(self, seconds: float) -> None:
        if self.ended.is_set():
            raise TimeoutError("ended by the benchmark")
        time.sleep(seconds)


def of_several(
    cells: Sequence[Cell], work: Path, *, steps: int, warm_up: int, may_go_on: Callable[[], bool]
) -> Iterator[tuple[Cell, Figures]]:
    """Yield each of `cells`, which several processes train, with its figures as `benchmarks.loaded.measured` does."""
    hardware = Hardware.detect()
    groups = [list(own) for _, own in itertools.groupby(cells, key=lambda cell: cell.group)]
    jobs = [
        Job(cells=own, work=work, steps=steps, warm_up=warm_up, name=f"{own[0].group}-{number}")
        for number, own in enumerate(groups)
    ]
    for job in jobs:
        for cell in job.cells:  # their rows, which all ranks read
            cell.run(work, steps, on_cpu=not hardware.devices)
    with ThreadPoolExecutor(LAUNCHES_AT_ONCE) as pool:
        for first in range(0, len(jobs), LAUNCHES_AT_ONCE):
            together = jobs[first : first + LAUNCHES_AT_ONCE]
            running = [(job, _start(pool, job, hardware)) for job in together]
            try:
                wait_for_imports((future, job.gate) for job, future in running)
                for job, future in running:
                    if not may_go_on():
                        return
                    yield from _to_the_end(job, future, pool, hardware, may_go_on)
            finally:
                for job, _ in running:  # whoever waits at a gate would wait for ever, and hold a GPU
                    job.ended.set()


def _start(pool: ThreadPoolExecutor, job: Job, hardware: Hardware) -> Future[None]:
    job.write()
    return pool.submit(job.run, hardware)


def _to_the_end(
    job: Job, future: Future[None], pool: ThreadPoolExecutor, hardware: Hardware, may_go_on: Callable[[], bool]
) -> Iterator[tuple[Cell, Figures]]:
    """Yield the cells of `job`, which has begun; those after one that ended it are trained by another launch."""
    job.gate.open()
    count = 0
    try:
        since, patience = time.monotonic(), PATIENCE + LOADING
        while True:
            over = future.done()  # before the figures are read, so that none is missed
            for figures in job.done()[count:]:
                yield job.cells[count], figures
                count, since, patience = count + 1, time.monotonic(), PATIENCE
            if over:
                break
            if not may_go_on():
                job.stop.touch()
            if time.monotonic() > since + patience:
                job.ended.set()
            time.sleep(0.2)
        error = future.exception()
    finally:
        job.ended.set()
    if error is None or count == len(job.cells):
        return
    failed, rest = job.cells[count], job.cells[count + 1 :]
    told = str(error) if isinstance(error, LaunchError) else f"{type(error).__name__}: {error}"
    yield failed, {"cell": asdict(failed), "error": told[-1500:]}
    if not rest or not count or not may_go_on():  # a launch that trains nothing would fail again
        return
    again = replace(job, cells=rest, name=f"{job.name}-{len(job.cells) - len(rest)}", ended=threading.Event())
    future = _start(pool, again, hardware)
    wait_for_imports([(future, again.gate)])
    yield from _to_the_end(again, future, pool, hardware, may_go_on)
