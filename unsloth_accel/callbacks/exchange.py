"""What ranks tell each other while they train: a few numbers, in one small collective."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Numbers = list[list[float]]
"""By rank."""


class Exchange:
    """One collective for all that has something to tell at a log.

    `join` before training, in the same order on every rank; who reads first makes every member tell.
    """

    def __init__(self) -> None:
        self._members: list[Callable[[], Sequence[float]]] = []
        self._told: list[Numbers] = []
        self._unread: set[int] = set()
        self._at: object = None

    def join(self, tell: Callable[[], Sequence[float]]) -> Callable[[object], Numbers]:
        """`tell` gives this rank's numbers. The function returned gives those of every rank, by rank, at a log that is
        named by its argument, the same for all members and ranks; every rank calls it, or none."""
        number = len(self._members)
        self._members.append(tell)

        def read(at: object) -> Numbers:
            if at != self._at or number not in self._unread:
                self._ask()
                self._at, self._unread = at, set(range(len(self._members)))
            self._unread.remove(number)
            return self._told[number]

        return read

    def _ask(self) -> None:
        own = [list(tell()) for tell in self._members]
        everyone = share([number for numbers in own for number in numbers])
        self._told, start = [], 0
        for numbers in own:
            self._told.append([row[start : start + len(numbers)] for row in everyone])
            start += len(numbers)


def share(own: Sequence[float]) -> Numbers:
    """The numbers of every rank, by rank; every rank must call it, with equally many.

    One all-reduce of some dozen numbers: call it at logs, where the Trainer reads the loss and waits anyway. Alone, or
    without a process group, it is what was given.
    """
    import torch
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1:
        return [list(own)]
    # A sum in which each rank's row is its own: torch has renamed its gathers, and this works in every version.
    everyone = torch.zeros(state.num_processes, len(own), dtype=torch.float64)
    everyone[state.process_index] = torch.tensor(own, dtype=torch.float64)
    everyone = everyone.to(state.device)
    torch.distributed.all_reduce(everyone)
    rows: Numbers = everyone.tolist()
    return rows
