"""The options of a run: under each strategy the rows at once, and the blocks that keep their activations, that are
fastest of what fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..config.accelerate_config import Precision
from ..data.length_estimate import RowLengths
from ..hardware.device import Device
from ..hardware.hardware import Hardware
from ..strategies import STRATEGIES, Strategy, choosable
from .batch import divisors
from .memory_estimate import MemoryEstimate, Workload, estimate, usable_gib
from .speed_estimate import Speed, estimate_speed

USUAL_CARD = "RTX 4090"
"""Card whose rates one of unknown rates is taken to have where rows at once are weighed against kept blocks: their
ratio, 164 operations per byte, is about that of most cards. No speed is told of it, and no strategy chosen by it."""

ALIKE = 0.99
"""Share of the fastest option's speed from which on another number of rows is as good: the one that takes the least
memory is chosen, which leaves the most for what no estimate knows."""

SLOW = 0.8
"""Share of another option's speed below which none is looked at."""


def free_gib(device: Device) -> float:
    """Return the GiB of a GPU that a process can use: what is free, or all where that is unknown."""
    return device.memory_gib if device.memory_free_gib is None else device.memory_free_gib


@dataclass(frozen=True, kw_only=True)
class Option:
    """A strategy for this work with the fastest rows and kept blocks that memory allows; with the fewest of both where
    not even these fit."""

    strategy: str
    per_device: int
    """Rows at once."""
    keep_activations: int
    """Decoder blocks that keep their activations, of those that would be checkpointed."""
    memory: MemoryEstimate
    fits: bool
    speed: Speed | None
    """Estimated speed; None for all options where the hardware's rates are unknown."""

    @property
    def rank(self) -> tuple[float, int]:
        """Key for sorting: the fastest first."""
        seconds = 1 / self.pace if self.pace else 0.0
        return round(seconds, 9), STRATEGIES.names.index(self.strategy)

    @property
    def pace(self) -> float:
        """Tokens per second; 0 where none can be estimated."""
        return self.speed.tokens_per_second if self.speed else 0.0

    @property
    def record(self) -> Strategy:
        return STRATEGIES[self.strategy]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Run and hardware that a strategy is chosen for."""

    work: Workload
    hardware: Hardware
    capacity_gib: float
    """Free memory of the smallest GPU, in GiB."""
    num_processes: int
    data_parallel: int
    """Number of processes that compute different rows."""
    precision: Precision
    sizes: Sequence[int]
    """Per-device batch sizes, in rows, that would keep the global batch, ascending."""
    rows: int | None
    """Rows of one process in one optimizer step; None without a global batch."""
    keep: tuple[int, int] = (0, 0)
    """Fewest and most decoder blocks that may keep their activations."""
    accumulation: int | None = None
    """Gradient accumulation steps that the run gives."""
    gpus: int = 0
    """Number of GPUs over all machines, used or not."""
    lengths: RowLengths | None = None
    """Lengths of the rows where they are known and not packed; otherwise rows count as full."""
    by_tokens: bool = False
    """Whether a step's rows are shared out by tokens, in fewer micro-batches where these hold more rows."""
    processes_asked: bool = False
    """Whether the run gives the number of processes."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Strategies that the installed versions can't run, with the reason."""

    @property
    def free_devices(self) -> str:
        """The advice to free the fullest GPU; empty where nobody uses it."""
        least = min(self.hardware.devices, key=free_gib)
        used = least.memory_gib - free_gib(least)
        return f"free the {used:.1f} GiB that are in use on GPU {least.index}" if used > 0.1 * least.memory_gib else ""

    @property
    def available(self) -> list[str]:
        """Names of the strategies to choose among."""
        return [one.name for one in choosable(self.num_processes) if one.name not in self.unavailable]

    @property
    def usable_gib(self) -> float:
        """GiB of the smallest GPU that a plan may fill."""
        return usable_gib(self.capacity_gib)

    def option(self, strategy: str) -> Option:
        """Return the fastest that fits under `strategy`."""
        fitting = [*self.fitting(strategy)]
        if not fitting:
            return self._with(strategy, min(self.sizes), self.keep[0], fits=False)
        fastest = max(option.pace for option in fitting)
        if not fastest and not self.work.on_cpu:
            return replace(self._as_usual().option(strategy), speed=None)
        alike = [option for option in fitting if option.pace >= ALIKE * fastest]
        if self.rows is None or not fastest:
            return max(alike, key=lambda option: option.per_device)
        return min(alike, key=lambda option: option.memory.total)

    def _as_usual(self) -> Choice:
        """Return the same on cards of usual rates, with the memory that there is."""
        devices = tuple(replace(device, name=USUAL_CARD, parent="") for device in self.hardware.devices)
        return replace(self, hardware=replace(self.hardware, devices=devices))

    def fits(self, strategy: str) -> bool:
        """Return whether anything fits under `strategy`."""
        return any(self._memory(strategy, size, self.keep[0]).total <= self.usable_gib for size in self.sizes)

    def fitting(self, strategy: str) -> Iterator[Option]:
        """Yield with each number of rows as many kept blocks as fit, but what must be much slower than another."""
        fewest, most = self.keep
        best = 0.0
        for size in reversed(self.sizes):
            bound = self.speed(strategy, size, most)
            if bound and bound.tokens_per_second < SLOW * best:
                continue
            # Each block that keeps its activations takes more memory and less time.
            fitting = bisect_right(
                range(fewest, most + 1),
                self.usable_gib,
                key=partial(self._total, strategy, size),
            )
            if fitting:
                option = self._with(strategy, size, fewest + fitting - 1, fits=True)
                best = max(best, option.pace)
                yield option

    def _with(self, strategy: str, size: int, keep: int, *, fits: bool) -> Option:
        return Option(
            strategy=strategy,
            per_device=size,
            keep_activations=keep,
            memory=self._memory(strategy, size, keep),
            fits=fits,
            speed=self.speed(strategy, size, keep),
        )

    def _total(self, strategy: str, size: int, keep: int) -> float:
        return self._memory(strategy, size, keep).total

    def _memory(self, strategy: str, size: int, keep: int) -> MemoryEstimate:
        count = 1 if STRATEGIES[strategy].one_process else self.num_processes
        work = replace(self.work, per_device=size, keep_activations=keep)
        return estimate(work, strategy, count, free_gib=self.capacity_gib)

    def speed(self, strategy: str, size: int, keep: int) -> Speed | None:
        """Return the speed of `size` rows at once with `keep` blocks that keep their activations; None where it is
        unknown."""
        alone = STRATEGIES[strategy].one_process
        count = 1 if alone else self.num_processes
        work = replace(self.work, per_device=size, keep_activations=keep)
        steps = self.accumulation or 1 if self.rows is None else max(self.rows // size, 1)
        if alone and self.rows is not None:
            steps *= self.data_parallel  # the same rows, in one process
        short, fewer = self._as_rows_are(work, steps)
        given = (short, strategy, count, fewer, self.hardware, self.precision)
        speed = estimate_speed(*given, various=self.lengths is not None)
        if speed and self.lengths and work.pads:  # nothing is learned of padding
            return replace(speed, tokens=round(speed.tokens * self.lengths.mean / short.length))
        return speed

    def _as_rows_are(self, work: Workload, steps: int) -> tuple[Workload, int]:
        """Return the work of a micro-batch of rows of their mean length, laid end to end, and the number of those;
        where it is padded, of rows that are as long as the longest of so many.

        Rows shared out by tokens go into as few micro-batches as they fit (`adapters.token_balance`).
        """
        if self.lengths is None:
            return work, steps
        if work.pads:
            longest = self.lengths.longest_of(work.per_device * work.sequences_per_row)
            return replace(work, length=max(1, round(longest))), steps
        rows, mean = work.per_device * steps, max(1, round(self.lengths.mean))
        if self.by_tokens and self.rows is not None:
            # With a tenth to spare, since a group of rows may be longer than the average one.
            most = 0.9 * work.per_device * work.length
            steps = next(n for n in divisors(rows) if n >= steps or rows // n * mean <= most)
        return replace(work, per_device=rows // steps, length=mean), steps
