"""Exchange of a few numbers between ranks while they train, in one small collective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice

Numbers = list[list[float]]
"""Numbers of every rank, by rank."""

LEAST_SECONDS = 1.0
"""Least seconds between two exchanges: one costs about a millisecond, which steps of a fifth of a second would feel if
each had one (benchmarks/results/callback-cost-2xH100.json)."""


class Exchange:
    """One collective for all that has something to tell at a log, if the last is `LEAST_SECONDS` ago.

    `join` before training, in the same order on every rank; who reads first makes every member tell.
    """

    def __init__(self) -> None:
        self._members: list[Callable[[], Sequence[float]]] = []
        self._told: list[Numbers | None] = []
        self._unread: set[int] = set()
        self._at = 0
        self._asked_at = self._due_at = 0
        """Step of the last exchange, and the first that may have another."""
        self._asked: float | None = None
        """Time of the last exchange, by this rank's clock."""

    def join(self, tell: Callable[[], Sequence[float]]) -> Callable[[int], Numbers | None]:
        """`tell` gives this rank's numbers. The function returned gives those of every rank, by rank, at the log of a
        step; None where it is too early for an exchange. All members and ranks call it for the same steps, or none."""
        number = len(self._members)
        self._members.append(tell)

        def read(step: int) -> Numbers | None:
            if step != self._at or number not in self._unread:
                self._told = self._ask(step) if self._is_due(step) else [None] * len(self._members)
                self._at, self._unread = step, set(range(len(self._members)))
            self._unread.remove(number)
            return self._told[number]

        return read

    def _is_due(self, step: int) -> bool:
        return _alone() or step >= self._due_at or step < self._asked_at  # another training, from its beginning

    def _ask(self, step: int) -> list[Numbers | None]:
        own = [list(tell()) for tell in self._members]
        now = time.perf_counter()
        since = 0.0 if self._asked is None else now - self._asked
        everyone = share([since, *(number for numbers in own for number in numbers)])
        # Of one clock, so that every rank comes to the same step.
        self._due_at = step + _steps_in(LEAST_SECONDS, max(row[0] for row in everyone), step - self._asked_at)
        self._asked, self._asked_at = now, step
        rows = [iter(row[1:]) for row in everyone]
        return [[list(islice(row, len(numbers))) for row in rows] for numbers in own]


def _steps_in(seconds: float, taken: float, steps: int) -> int:
    """Return how many steps take `seconds`, at the pace of `steps` in `taken` seconds; at least one."""
    return max(1, math.ceil(seconds / (taken / steps))) if taken > 0 and steps > 0 else 1


def _alone() -> bool:
    from accelerate import PartialState

    return bool(PartialState().num_processes == 1)


def share(own: Sequence[float]) -> Numbers:
    """Return the numbers of every rank, by rank; every rank must call it, with equally many.

    One all-reduce of some dozen numbers: call it at logs, where the Trainer reads the loss and waits anyway. In one
    process, or without a process group, it returns what it was given.
    """
    import torch
    from accelerate import PartialState

    if _alone():
        return [list(own)]
    state = PartialState()
    # A sum in which each rank's row is its own: torch has renamed its gathers, and this works in every version.
    everyone = torch.zeros(state.num_processes, len(own), dtype=torch.float64)
    everyone[state.process_index] = torch.tensor(own, dtype=torch.float64)
    everyone = everyone.to(state.device)
    torch.distributed.all_reduce(everyone)
    rows: Numbers = everyone.tolist()
    return rows
