"""The figures of a run: what the headline says, and the series that its charts draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..artifacts.run_directory import RunDirectory
from .run_record import Json, Rank, Recorded, at, number, rows, table, text

Status = Literal["finished", "failed", "unfinished"]
PARTS = ("compute", "data", "wait")
"""Of a step's time, in the order in which they are drawn."""


@dataclass(frozen=True)
class Series:
    """Values over steps, or over another count; NaN where a value was not finite."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def __bool__(self) -> bool:
        return any(math.isfinite(y) for y in self.ys)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Where one rank's time went, as parts of its steps that add up to 1."""

    rank: int
    seconds: float
    """Of its median step."""
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One rank's memory at its peak, in GiB; None where it was not measured."""

    rank: int | None
    """None: the largest of all ranks."""
    allocated: float | None
    reserved: float | None
    context: float | None
    host: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one run."""

    model: str
    strategy: str
    processes: int
    device: str
    """`cuda`, `cpu`, or empty where it is unknown."""
    cards: str
    """The GPUs or CPU that it ran on, or was planned for."""
    status: Status
    message: str
    """Why it failed."""
    steps: int
    seconds: float | None
    """Of training."""
    tokens: float | None
    tokens_per_second: float | None
    tokens_per_second_per_gpu: float | None
    step_seconds: float | None
    mfu: float | None
    mfu_why: str
    loss_first: float | None
    loss_last: float | None
    loss_over: int
    """How many logged steps each of the two is the mean of."""
    held_loss: tuple[float | None, float | None]
    held_accuracy: tuple[float | None, float | None]
    held_rows: int | None
    peak_gib: float | None
    """The most that torch allocated on one GPU."""
    finished: float | None
    """When the last line was written, Unix seconds."""

    @property
    def where(self) -> str:
        """`2 × NVIDIA H100 80GB HBM3`, or `2 processes on a CPU`."""
        if self.device == "cuda":
            return f"{self.processes} × {self.cards or 'GPU'}"
        return f"{self.processes} process{'es' * (self.processes != 1)}" + (" on a CPU" if self.device else "")


def figures(run: Recorded) -> Figures:
    """The headline figures; from summary.json and results.json where they are there, else from the logs."""
    training, summary = table(at(run.results, "training")), run.summary
    loss = column(run.steps, "loss", "loss")
    finite = [y for y in loss.ys if math.isfinite(y)]
    over = max(1, min(20, len(finite) // 20))
    processes = _count(at(run.plan, "num_processes"), training.get("processes"), len(run.ranks), 1)
    tokens = _first(summary.get("tokens"), training.get("tokens"), _tokens(run))
    seconds = _first(summary.get("seconds"), training.get("seconds"), *(r.end.get("seconds") for r in run.ranks))
    seconds = seconds if seconds is not None else _seconds(run)
    speed = _first(summary.get("tokens_per_second"))
    if speed is None and tokens is not None and seconds:
        speed = tokens / seconds
    each = _first(summary.get("tokens_per_second_per_gpu"))
    status, message = _status(run)
    return Figures(
        model=text(_model(run)),
        strategy=text(at(run.plan, "strategy") or at(run.run, "distributed", "strategy") or training.get("strategy")),
        processes=processes,
        device=text(at(run.plan, "device") or at(run.run, "distributed", "device") or training.get("device")),
        cards=_cards(run),
        status=status,
        message=message,
        steps=_steps(run),
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=speed,
        tokens_per_second_per_gpu=each if each is not None else speed / processes if speed else None,
        step_seconds=_first(summary.get("step_seconds_median"), median(step_seconds(run).ys)),
        mfu=number(summary.get("mfu")),
        mfu_why=text(summary.get("mfu_why")),
        loss_first=mean(finite[:over]),
        loss_last=mean(finite[-over:]),
        loss_over=over,
        held_loss=_held(run, "loss"),
        held_accuracy=_held(run, "accuracy"),
        held_rows=_whole(at(run.results, "after", "rows")),
        peak_gib=max((m.allocated for m in memory_by_rank(run) if m.allocated is not None), default=None),
        finished=_finished(run),
    )


def column(lines: Iterable[Json], key: str, name: str, x: str = "step") -> Series:
    """`key` over `x`, of the lines that have both."""
    pairs = [(number(line.get(x)), line[key]) for line in lines if key in line]
    kept = [(at, _value(value)) for at, value in pairs if at is not None and isinstance(value, int | float)]
    return Series(name, tuple(at for at, _ in kept), tuple(value for _, value in kept))


def throughput(run: Recorded) -> Series:
    """Real tokens per second over all ranks: of each step from the ranks' logs, else between logged steps."""
    found = [(step, tokens / seconds) for step, tokens, seconds in run.totals if seconds > 0]
    for before, line in itertools.pairwise([] if found else run.steps):
        tokens, seconds = _grown(before, line, "num_input_tokens_seen"), _grown(before, line, "seconds")
        if tokens and seconds:  # both fall where a run went on from a checkpoint
            found.append((float(line["step"]), tokens / seconds))
    return Series("tokens/s", tuple(step for step, _ in found), tuple(rate for _, rate in found))


def step_seconds(run: Recorded) -> Series:
    """Seconds of each step: the slowest rank's, else what passed between logged steps."""
    found = [(step, seconds) for step, _, seconds in run.totals]
    for before, line in itertools.pairwise([] if found else run.steps):
        steps, seconds = _grown(before, line, "step"), _grown(before, line, "seconds")
        if steps and seconds:
            found.append((float(line["step"]), seconds / steps))
    return Series("s", tuple(step for step, _ in found), tuple(seconds for _, seconds in found))


def shares(run: Recorded) -> list[Share]:
    """Where each rank's time went; empty where no rank measured it."""
    found = []
    for told in _told_ranks(run):
        parts = {part: number(told.get(f"{part}_share")) for part in PARTS}
        if any(value is not None for value in parts.values()):
            whole = {part: value or 0.0 for part, value in parts.items()}
            seconds = number(told.get("seconds_median")) or 0.0
            found.append(Share(rank=_whole(told.get("rank")) or 0, seconds=seconds, parts=_to_one(whole)))
    return found or [share for rank in run.ranks if (share := _share(rank))]


def memory_by_rank(run: Recorded) -> list[Measured]:
    """What each rank took at its peak; the largest of all ranks where ranks were not logged."""
    largest = table(at(run.results, "memory_gib"))
    context = number(at(largest, "context"))
    found = [
        Measured(
            rank=_whole(told.get("rank")) or 0,
            allocated=number(told.get("peak_gib")),
            reserved=number(told.get("reserved_gib")),
            context=context,
            host=number(told.get("host_gib")),
        )
        for told in _told_ranks(run)
    ]
    found = found or [_peak(rank, context) for rank in run.ranks if rank.steps]
    found = [one for one in found if (one.allocated, one.reserved, one.host) != (None, None, None)]
    if found or not largest:
        return found
    allocated, reserved = number(at(largest, "training")), number(at(largest, "reserved"))
    return [Measured(rank=None, allocated=allocated, reserved=reserved, context=context, host=None)]


def median(values: Iterable[float]) -> float | None:
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _told_ranks(run: Recorded) -> list[Json]:
    return [rank for rank in rows(run.summary.get("ranks")) if isinstance(rank, dict)]


def _share(rank: Rank) -> Share | None:
    sums = {part: math.fsum(_values(rank, f"{part}_seconds")) for part in PARTS}
    if not sum(sums.values()):
        return None
    seconds = median(_values(rank, "seconds")) or 0.0
    return Share(rank=rank.number, seconds=seconds, parts=_to_one(sums))


def _to_one(parts: dict[str, float]) -> dict[str, float]:
    whole = math.fsum(max(0.0, value) for value in parts.values())
    return {part: max(0.0, value) / whole if whole else 0.0 for part, value in parts.items()}


def _peak(rank: Rank, context: float | None) -> Measured:
    most = {key: max(_values(rank, key), default=None) for key in ("allocated_gib", "reserved_gib", "host_gib")}
    return Measured(
        rank=rank.number,
        allocated=most["allocated_gib"],
        reserved=most["reserved_gib"],
        context=context,
        host=most["host_gib"],
    )


def _values(rank: Rank, key: str) -> Iterator[float]:
    return (value for step in rank.steps if (value := number(step.get(key))) is not None)


def _grown(before: Json, line: Json, key: str) -> float | None:
    a, b = number(before.get(key)), number(line.get(key))
    return b - a if a is not None and b is not None and b > a else None


def _value(value: float) -> float:
    """NaN for what no chart can show."""
    try:
        size = abs(float(value))
    except OverflowError:
        return math.nan
    return math.nan if not size < 1e100 else 0.0 if size < 1e-100 else float(value)


def _first(*values: Any) -> float | None:
    return next((found for value in values if (found := number(value)) is not None), None)


def _count(*values: Any) -> int:
    return next(found for value in values if (found := _whole(value)))


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _held(run: Recorded, key: str) -> tuple[float | None, float | None]:
    return number(at(run.results, "before", key)), number(at(run.results, "after", key))


def _model(run: Recorded) -> Any:
    return at(run.run, "model", "name") or at(run.plan, "model", "name")


def _cards(run: Recorded) -> str:
    names = [text(rank.start.get("device")) for rank in run.ranks if rank.start.get("device")]
    names = names or [text(at(device, "name")) for device in rows(at(run.plan, "hardware", "devices"))]
    return " + ".join(dict.fromkeys(names))


def _steps(run: Recorded) -> int:
    """Steps behind the run, those before it went on included."""
    reached = [number(line.get("step")) or 0.0 for line in run.steps[-1:]]
    reached += [number(rank.steps[-1].get("step")) or 0.0 for rank in run.ranks if rank.steps]
    told = (_first(at(run.results, "training", "steps")), _first(run.summary.get("steps")))
    return int(max([0.0, *reached, *(count for count in told if count is not None)]))


def _tokens(run: Recorded) -> float | None:
    if run.totals:
        return math.fsum(tokens for _, tokens, _ in run.totals)
    return _first(*(line.get("num_input_tokens_seen") for line in run.steps[-1:]))


def _seconds(run: Recorded) -> float | None:
    if run.totals:
        return math.fsum(seconds for _, _, seconds in run.totals)
    return _first(*(line.get("seconds") for line in run.steps[-1:]))


def _finished(run: Recorded) -> float | None:
    times = [number(rank.end.get("time")) for rank in run.ranks]
    times += [number(rank.steps[-1].get("time")) for rank in run.ranks if rank.steps]
    known = [time for time in times if time is not None]
    if known:
        return max(known)
    files = RunDirectory(run.directory)
    for path in (files.results, files.step_log):
        if path.is_file():
            return path.stat().st_mtime
    return None


def _status(run: Recorded) -> tuple[Status, str]:
    """How it ended, and in what words it failed."""
    if run.errors:
        return "failed", text(run.errors[0].get("message")) or "a rank failed and left no word."
    ends = [rank.end for rank in run.ranks if rank.end]
    failed = next((end for end in ends if end.get("status") == "failed"), None)
    if failed:
        return "failed", text(failed.get("message")) or "a rank failed and left no word."
    if run.ranks and len(ends) < len(run.ranks) and not run.results:
        return "unfinished", ""
    return ("finished", "") if run.results or ends else ("unfinished", "")
