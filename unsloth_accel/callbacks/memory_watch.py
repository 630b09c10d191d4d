"""MemoryWatch: says that memory runs short before it is out, and what would help."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..adapters.fsdp2.peer_fetch.fetch import shared_bytes
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..planning.memory_estimate import MEMORY_LIMIT, WORST_ERROR
from .memory_reading import machine, torch_memory
from .rank_log import RankLog


@dataclass(frozen=True, kw_only=True)
class MemoryShares:
    """What is in use, as shares of all there is (0 to 1)."""

    gpu: float | None
    """The most that torch has allocated so far, and what others use on this rank's GPU; None on a CPU."""
    retries: int
    """Number of times that torch's allocator had to free cached memory to go on, which precedes out of memory."""
    host: float
    """Share of this machine's memory, or of the container's."""
    own_gib: float = 0.0
    """The most GiB that torch has allocated on the GPU so far."""


def memory_shares() -> MemoryShares:
    """This process's memory: torch's now, the rest at most a second ago."""
    own, around = torch_memory(), machine()
    if own is None:
        return MemoryShares(gpu=None, retries=0, host=around.host)
    used = (own.peak + around.others) / around.total
    return MemoryShares(gpu=used, retries=own.retries, host=around.host, own_gib=own.peak / 2**30)


class MemoryWatch(TrainerCallback):
    """Looks after every step, on every rank, and warns once of each: a GPU nearly full, one fuller than was planned,
    torch's allocator that had to start over, a host nearly full (its system then kills a process without a word).

    `most`: share of a GPU's memory from which on it warns, by default what a plan fills; `most_host`: likewise of the
    host's. `planned_gib`: GiB that by the plan torch allocates. `advice` says what would help. `listener` gets each
    warning, or `log`, which lets rank 0 tell it; by default it goes to stderr.
    """

    def __init__(
        self,
        *,
        most: float = MEMORY_LIMIT,
        most_host: float = MEMORY_LIMIT,
        planned_gib: float | None = None,
        advice: str = "a smaller per-device batch with more accumulation, or shorter rows",
        listener: Callable[[str], None] | None = None,
        log: RankLog | None = None,
        read: Callable[[], MemoryShares] = memory_shares,
    ) -> None:
        self.most = most
        self.most_host = most_host
        self.planned_gib = planned_gib
        self.advice = advice
        self.listener = listener
        self.log = log
        self.read = read
        self.warnings: list[str] = []
        self._told: set[str] = set()
        self._retries = 0
        self._shared_gib = 0.0
        """GiB of weights in memory that the GPUs share, which torch's allocator doesn't count and the plan does."""

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._retries = self.read().retries  # loading may have cost some
        self._shared_gib = shared_bytes(kwargs.get("model")) / 2**30

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        for kind, message in self._shortages(self.read()):
            if kind in self._told:
                continue
            self._told.add(kind)
            message = f"{message}. What would help: {self.advice}."
            text = f"rank {args.process_index}, step {state.global_step}: {message}"
            self.warnings.append(text)
            if self.log is not None:
                self.log.warn("memory", message, state.global_step)
            if self.listener is not None:
                self.listener(text)
            elif self.log is None:
                print(f"unsloth_accel: {text}", file=sys.stderr, flush=True)

    def _shortages(self, now: MemoryShares) -> Iterator[tuple[str, str]]:
        own = now.own_gib + self._shared_gib
        planned = f" (the plan reckoned with {self.planned_gib:.1f} GiB for torch)" if self.planned_gib else ""
        if now.gpu is not None and now.gpu >= self.most:
            yield "gpu", f"{now.gpu:.0%} of the GPU's memory was in use{planned}; a step with longer rows may not fit"
        elif self.planned_gib and own > (1 + WORST_ERROR) * self.planned_gib:
            yield "plan", f"torch allocated {own:.1f} GiB on the GPU{planned}; longer rows may not fit"
        if now.retries > self._retries:
            yield "retries", "torch had to free all that it held ready to go on; the next larger step may not fit"
        if now.host >= self.most_host:
            yield "host", f"{now.host:.0%} of the machine's memory is in use; the system kills a process when it is out"
