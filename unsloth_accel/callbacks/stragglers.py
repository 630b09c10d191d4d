"""Stragglers: names the rank that the others wait for, and what slows it."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from .exchange import share
from .gpu_clock import Clock, ClockReader
from .rank_log import RankLog
from .throughput import Step, Throughput

Cause = Literal["data", "callbacks", "gpu clock", "optimizer", "network", "unknown"]


@dataclass(frozen=True)
class Pace:
    """Pace of one rank: medians over a window of steps, in seconds, and its clock."""

    data: float
    compute: float
    wait: float
    """Seconds of waiting for other ranks; negative where they are not known."""
    clock_mhz: float = 0.0
    reasons: float = 0.0
    callbacks: float = 0.0
    update: float = 0.0
    """Seconds of `compute` after the gradients were averaged: clipping and optimizer."""
    steps: tuple[float, ...] = ()
    """Busy seconds of each step of the window."""

    @property
    def busy(self) -> float:
        return self.data + self.compute + self.callbacks


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """The slowest rank."""

    rank: int
    cause: Cause
    slower_by: float
    """Seconds per step above the median of the others."""
    share: float
    """Share of the others' time per step that it is slower by."""
    detail: str


def find_straggler(paces: Sequence[Pace], threshold: float = 0.1) -> Straggler | None:
    """Find the rank whose loader, compute and callbacks take `threshold` longer than the others' median; None if none
    does.

    Cause: `data` or `callbacks` when more than half of what it is slower by is its loader's or its callbacks'; `gpu
    clock` when its GPU is held back (power, temperature) and the others' median clock is at least 5 % higher;
    `optimizer` when more than half is its clipping and optimizer; else `unknown`: longer rows, another process on its
    GPU, a busy host. A rank that was not the slowest in most steps is none: rows of different lengths
    make one rank slow in this step and another in the next.
    """
    if len(paces) < 2:
        return None
    rank = max(range(len(paces)), key=lambda index: paces[index].busy)
    slow, others = paces[rank], [pace for index, pace in enumerate(paces) if index != rank]
    usual = statistics.median(pace.busy for pace in others)
    slower = slow.busy - usual
    if slower <= threshold * usual or slower < LEAST_SECONDS or often_slowest(paces, rank) < LEAST_OFTEN:
        return None
    by_data, by_callbacks, by_update = (
        getattr(slow, name) - statistics.median(getattr(pace, name) for pace in others)
        for name in ("data", "callbacks", "update")
    )
    clock, usual_clock = slow.clock_mhz, statistics.median(pace.clock_mhz for pace in others)
    held_back = Clock(clock, int(slow.reasons)).held_back_by
    cause: Cause
    if by_data > slower / 2:
        cause, detail = "data", f"its loader takes {by_data:.3f} s longer: a slow disk, network or tokenizer"
    elif by_callbacks > slower / 2:
        cause, detail = (
            "callbacks",
            f"its callbacks take {by_callbacks:.3f} s longer: a slow disk, or a service they call",
        )
    elif 0 < clock < 0.95 * usual_clock:
        cause, detail = "gpu clock", f"its GPU runs at {clock:.0f} MHz, the others' at {usual_clock:.0f} MHz"
        detail += f", held back by {held_back}" if held_back else ""
    elif by_update > slower / 2:
        cause, detail = "optimizer", f"its optimizer takes {by_update:.3f} s longer: a busy host, or what hooks into it"
    else:
        cause = "unknown"
        detail = "not its loader, nor its GPU's clock: longer rows, another process on its GPU, or a busy host"
    return Straggler(rank=rank, cause=cause, slower_by=slower, share=slower / usual if usual else 1.0, detail=detail)


LEAST_SECONDS = 0.002
"""Smallest difference in seconds above the noise of clocks and kernels' launches."""
LEAST_OFTEN = 0.85
"""Least share of a window's steps in which a straggler is slowest; two equal ranks reach 0.9 in 2 % of windows."""


def often_slowest(paces: Sequence[Pace], rank: int) -> float:
    """Return the share of steps in which `rank` needed the most time; 1 where single steps are not known."""
    steps = [step for step in zip(*(pace.steps for pace in paces), strict=True) if all(map(math.isfinite, step))]
    return sum(step[rank] == max(step) for step in steps) / len(steps) if steps else 1.0


def network_share(paces: Sequence[Pace]) -> float | None:
    """Return the share of a step that even the rank that waits least spends exchanging; None if waiting is unknown.

    The slowest rank waits for nobody, so its wait is the exchange itself. Which rank's link is slow can't be seen.
    """
    least = min(paces, key=lambda pace: pace.wait)
    if least.wait < 0 or len(paces) < 2:
        return None
    total = least.busy + least.wait
    return least.wait / total if total else 0.0


@dataclass
class _Episode:
    rank: int
    cause: Cause
    slower_by: float
    steps: int


class Stragglers(TrainerCallback):
    """Compares the ranks at the first log after every `window` steps, and warns once while the same rank is slow.

    Warns, too, when the exchange itself takes `most_network` of a step. What is compared is what a rank needs for
    itself, data, compute and callbacks: where `Throughput` can't tell waiting from computing (it says when), only a
    slow loader and slow callbacks show. The first `warmup` steps, which compile, are left out. `found` on rank 0 holds
    what was found.
    """

    def __init__(
        self,
        throughput: Throughput | None = None,
        *,
        window: int = 10,
        threshold: float = 0.1,
        most_network: float = 0.3,
        warmup: int = 3,
        log: RankLog | None = None,
    ) -> None:
        self.throughput = throughput or Throughput()
        self.window = window
        self.threshold = threshold
        self.most_network = most_network
        self.warmup = warmup
        self._owned = throughput is None
        self._log = log
        self._names: list[str] = []
        self._clock = ClockReader()
        self._episodes: list[_Episode] = []
        self._open: _Episode | None = None
        self._network_told = False
        self._checked = 0
        if self._owned:  # no Trainer calls it
            self.on_step_begin = self.throughput.on_step_begin
            self.on_step_end = self.throughput.on_step_end

    @property
    def found(self) -> list[dict[str, Any]]:
        """Stragglers found, each with `rank`, `cause`, `slower_by` (seconds per step) and `steps` that it lasted."""
        return [asdict(episode) for episode in self._episodes]

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        from ..hardware.ranks import of_every_rank

        if self._owned:
            self.throughput.on_train_begin(args, state, control, **kwargs)
        if self._log is None:
            self._log = RankLog(None, args.process_index)
        self._checked = state.global_step + self.warmup
        where = f"{platform.node()}, " + (f"GPU {_gpu(args)}" if args.device.type == "cuda" else "CPU")
        self._names = of_every_rank(where)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._owned:
            self.throughput.close()

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if self._owned:
            self.throughput.on_log(args, state, control, logs, **kwargs)
        if not logs or "loss" not in logs or args.world_size == 1:
            return
        steps = state.global_step - self._checked
        if steps < self.window or not self.throughput.recent:
            return
        self._checked = state.global_step
        own = list(islice(reversed(self.throughput.recent), min(steps, self.window)))
        # As many on every rank, or the exchange would not fit together.
        busy = [*(step.busy for step in own), *[math.nan] * self.window][: self.window]
        paces = [
            Pace(data, compute, wait, clock, reasons, callbacks, update, tuple(each))
            for data, compute, wait, clock, reasons, callbacks, update, *each in share([*self._pace(own), *busy])
        ]
        if args.process_index == 0:  # alone: that its warning is shown needs no other rank
            self._judge(paces, state.global_step, steps)

    def _pace(self, steps: Sequence[Step]) -> list[float]:
        """Return this rank's numbers in the order of `Pace`."""
        waits = [step.wait for step in steps if step.wait is not None]
        clock = self._clock.read()
        return [
            statistics.median(step.data for step in steps),
            statistics.median(step.compute for step in steps),
            statistics.median(waits) if waits else -1.0,
            clock.mhz,
            float(clock.reasons),
            statistics.median(step.callbacks for step in steps),
            statistics.median(step.update for step in steps),
        ]

    def _judge(self, paces: Sequence[Pace], step: int, steps: int) -> None:
        assert self._log is not None
        slow = find_straggler(paces, self.threshold)
        if slow is None:
            self._open = None
            self._judge_network(paces, step)
            return
        if self._open is not None and (self._open.rank, self._open.cause) == (slow.rank, slow.cause):
            self._open.steps += steps
            self._open.slower_by = max(self._open.slower_by, round(slow.slower_by, 4))
            return
        self._open = _Episode(slow.rank, slow.cause, round(slow.slower_by, 4), steps)
        self._episodes.append(self._open)
        self._tell(
            f"rank {slow.rank} ({self._names[slow.rank]}) is slow, {slow.slower_by:.3f} s per step or {slow.share:.0%} "
            f"more than the others, who wait for it. Cause: {slow.cause} ({slow.detail})",
            step,
            slow_rank=slow.rank,
            cause=slow.cause,
            slower_by=slow.slower_by,
        )

    def _judge_network(self, paces: Sequence[Pace], step: int) -> None:
        part = network_share(paces)
        if part is None or part < self.most_network or self._network_told:
            return
        self._network_told = True
        self._tell(
            f"no rank is slow, but exchanging gradients takes {part:.0%} of a step. What would help: a larger "
            "per-device batch or more accumulation, or a faster link (`unsloth-accel doctor` measures it)",
            step,
            cause="network",
        )

    def _tell(self, message: str, step: int, **fields: Any) -> None:
        assert self._log is not None
        self._log.warn("straggler", message, step, **fields)
        if self._log.path is None:  # nobody else shows it
            print(f"unsloth_accel: {message}.", flush=True)


def _gpu(args: Arguments) -> str:
    """Return the GPU's number as its user counts, or what CUDA_VISIBLE_DEVICES calls it."""
    index = args.device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[index] if index < len(visible) and visible[index] else str(index)
