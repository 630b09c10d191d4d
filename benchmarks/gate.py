"""Gate: many runs import their packages at once, and then train one after the other, each with all GPUs to itself.

Importing Unsloth takes a GPU machine up to a minute, which a call with a time limit can't spend on every run. Each
process of a run waits at its gate once it has imported everything and before it loads anything (`benchmarks.worker`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.worker import GATE, MODULE
from unsloth_accel.planning.plan import Plan
from unsloth_accel.verify.runs import Trained, train

TIMEOUT = 200.0
"""Seconds that a run may take once its gate is open."""
IMPORT_TIMEOUT = 180.0
"""Seconds in which all runs should have imported their packages; after them the first starts all the same."""


@dataclass(frozen=True)
class Gate:
    path: Path
    """The file that opens it."""
    processes: int

    def open(self) -> None:
        self.path.touch()

    def is_reached(self) -> bool:
        """Whether all processes have imported what they need."""
        return len(list(self.path.parent.glob(f"{self.path.name}.ready-*"))) == self.processes

    def train(self, decided: Plan, environment: Mapping[str, str], stopped: threading.Event) -> Trained:
        """Train `decided` once the gate is open; `stopped` ends a run that still waits.

        Raises `TimeoutError` where it is stopped or takes longer than `TIMEOUT`, `LaunchError` where it fails.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Its own cache of compiled code: processes of several runs that write the same one read half a file.
        compiled = self.path.parent.with_name("compiled") / self.path.name
        own = {GATE: str(self.path), "UNSLOTH_COMPILE_LOCATION": str(compiled)}
        opened: list[float] = []

        def wait(seconds: float) -> None:
            if not opened and self.path.exists():
                opened.append(time.perf_counter())
            if opened and time.perf_counter() > opened[0] + TIMEOUT:
                raise TimeoutError(f"not done after {TIMEOUT:.0f} s")
            if stopped.is_set() and not opened:
                raise TimeoutError("not started")
            time.sleep(seconds)

        return train(decided, wait, {**environment, **own}, module=MODULE)


def wait_for_imports(runs: Iterable[tuple[Future[Any], Gate]]) -> None:
    """Return when every run has ended or reached its gate, or after `IMPORT_TIMEOUT`."""
    waiting, latest = list(runs), time.perf_counter() + IMPORT_TIMEOUT
    while time.perf_counter() < latest and not all(run.done() or gate.is_reached() for run, gate in waiting):
        time.sleep(0.5)
