"""The figures of a run: what the headline says, and the series that its charts draw."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..artifacts.run_directory import RunDirectory
from ..errors import counted
from .run_record import Json, Recorded, at, number, rows, table, tables, text, values

Status = Literal["finished", "failed", "unfinished"]
PARTS = ("compute", "data", "callbacks", "wait")
"""Parts of a step's time, in the order in which they are drawn."""


@dataclass(frozen=True)
class Series:
    """Values over steps, or over another count; NaN where a value was not finite."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @classmethod
    def of(cls, name: str, points: Iterable[tuple[float, float]]) -> Series:
        points = list(points)
        return cls(name, tuple(x for x, _ in points), tuple(y for _, y in points))

    def __bool__(self) -> bool:
        return any(math.isfinite(y) for y in self.ys)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares of one rank's time in its steps, which add up to 1."""

    rank: int
    seconds: float
    """Seconds of its median step."""
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One rank's memory at its peak, in GiB; None where it was not measured."""

    rank: int | None
    """Rank, or None for the largest of all ranks."""
    allocated: float | None
    reserved: float | None
    context: float | None
    host: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Headline figures of one run."""

    model: str
    strategy: str
    processes: int
    device: str
    """`cuda`, `cpu`, or empty where it is unknown."""
    cards: str
    """The GPUs or CPU that it ran on, or was planned for."""
    status: Status
    message: str
    """Error message, if it failed."""
    steps: int
    parts: str
    """Part of the run that times and tokens are of, where it went on from a checkpoint."""
    seconds: float | None
    """Seconds of training."""
    tokens: float | None
    tokens_per_second: float | None
    tokens_per_second_per_gpu: float | None
    step_seconds: float | None
    mfu: float | None
    mfu_why: str
    loss_first: float | None
    loss_last: float | None
    loss_over: int
    """Number of logged steps that each of the two is the mean of."""
    reward_first: float | None
    """Mean reward of the completions of the first logged steps; None where a method scores none."""
    reward_last: float | None
    evaluated: tuple[tuple[int, float], ...]
    """Step and held-out loss of each evaluation while it trained."""
    rewarded: tuple[tuple[int, float], ...]
    held_loss: tuple[float | None, float | None]
    held_reward: tuple[float | None, float | None]
    held_accuracy: tuple[float | None, float | None]
    held_pairs: tuple[float | None, float | None]
    """Share of held-out pairs in which the chosen answer wins, before and after."""
    held_rows: int | None
    peak_gib: float | None
    """Most GiB that torch allocated on one GPU."""
    finished: float | None
    """Time of the last line, in Unix seconds."""

    @property
    def where(self) -> str:
        """Description of the devices: `2 × NVIDIA H100 80GB HBM3`, or `2 processes on a CPU`."""
        if self.device == "cuda":
            return f"{self.processes} × {self.cards or 'GPU'}"
        return counted(self.processes, "process") + (" on a CPU" if self.device else "")


def figures(run: Recorded) -> Figures:
    """The headline figures; from summary.json and results.json where they tell of the whole run, else from the logs."""
    training, summary = ({}, {}) if run.adds_up else (table(at(run.results, "training")), run.summary)
    finite, rewards = ([y for y in column(run.steps, name, name).ys if math.isfinite(y)] for name in ("loss", "reward"))
    over = max(1, min(20, len(finite) // 20))
    now = at(run.results, "training", "processes")
    counts = map(_whole, (at(run.plan, "num_processes"), now, len(run.ranks)))
    processes = next(filter(None, counts), 1)
    last = run.steps[-1] if run.steps else {}
    trained, stepping = (math.fsum(step[i] for step in run.totals) if run.totals else None for i in (1, 2))
    tokens = _first(summary.get("tokens"), training.get("tokens"), trained, last.get("num_input_tokens_seen"))
    ends = [] if run.adds_up else [rank.end.get("seconds") for rank in run.ranks]
    last_part = run.attempts > 1 and not run.adds_up
    steps = _whole(_first(summary.get("steps"), training.get("steps"))) if last_part else None
    seconds = _first(summary.get("seconds"), training.get("seconds"), *ends, stepping, last.get("seconds"))
    own_speed = tokens / seconds if tokens is not None and seconds else None
    speed = _first(summary.get("tokens_per_second"), own_speed)
    status, message = _status(run)
    base = at(run.plan, "model", "name") if at(run.plan, "adapter") else None
    start = run.ranks[0].start if run.ranks else {}  # a script has no plan
    return Figures(
        model=text(base or at(run.run, "model", "name") or at(run.plan, "model", "name") or start.get("model")),
        strategy=text(
            at(run.plan, "strategy")
            or at(run.run, "distributed", "strategy")
            or at(run.results, "training", "strategy")
            or start.get("strategy")
        ),
        processes=processes,
        device=text(
            at(run.plan, "device")
            or at(run.run, "distributed", "device")
            or at(run.results, "training", "device")
            or (start.get("device") and ("cpu" if start["device"] == "cpu" else "cuda"))
        ),
        cards=_cards(run),
        status=status,
        message=message,
        steps=_steps(run) if steps is None else steps,
        parts="in the last part" if last_part else f"in {run.attempts} parts" if run.adds_up else "",
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=speed,
        tokens_per_second_per_gpu=_first(
            summary.get("tokens_per_second_per_gpu"), speed / processes if speed else None
        ),
        step_seconds=_first(summary.get("step_seconds_median"), _step_seconds(run)),
        mfu=number(run.summary.get("mfu")),
        mfu_why=text(run.summary.get("mfu_why")) + " Of the last part." * (run.adds_up and "mfu" in run.summary),
        loss_first=mean(finite[:over]),
        loss_last=mean(finite[-over:]),
        loss_over=over,
        reward_first=mean(rewards[:over]),
        reward_last=mean(rewards[-over:]),
        evaluated=evaluated(run),
        rewarded=evaluated(run, "reward"),
        held_loss=_held(run, "loss"),
        held_reward=_held(run, "reward"),
        held_accuracy=_held(run, "accuracy"),
        held_pairs=_held(run, "pair_accuracy"),
        held_rows=_whole(at(run.results, "after", "rows")),
        peak_gib=max((m.allocated for m in memory_by_rank(run) if m.allocated is not None), default=None),
        finished=_finished(run),
    )


def evaluated(run: Recorded, name: str = "loss") -> tuple[tuple[int, float], ...]:
    """Step and held-out figure of each evaluation while `run` trained, those that were not finite left out."""
    lines = ((int(line["step"]), number(line.get(f"eval_{name}"))) for line in run.evaluations)
    return tuple((step, figure) for step, figure in lines if figure is not None)


def column(lines: Iterable[Json], key: str, name: str, x_key: str = "step") -> Series:
    """Return `key` over `x_key`, of the lines that have both."""
    pairs = ((number(line.get(x_key)), line[key]) for line in lines if key in line)
    return Series.of(name, [(x, _value(y)) for x, y in pairs if x is not None and isinstance(y, int | float)])


def throughput(run: Recorded) -> Series:
    """Real tokens per second over all ranks: of each step from the ranks' logs, else between logged steps."""
    found = [(step, tokens / seconds) for step, tokens, seconds in run.totals if seconds > 0]
    return Series.of("tokens/s", found or _between(run, "num_input_tokens_seen", "seconds"))


def _step_seconds(run: Recorded) -> float | None:
    """Return the median seconds of a step: the slowest rank's, else what passed between logged steps."""
    found = [(step, seconds) for step, _, seconds in run.totals] or _between(run, "seconds", "step")
    return median(seconds for _, seconds in found)


def _between(run: Recorded, key: str, per: str) -> list[tuple[float, float]]:
    """Return the growth of `key` for each of `per` between logged steps; both fall where a run went on."""
    pairs = itertools.pairwise(run.steps)
    grown = ((float(line["step"]), _grown(before, line, key), _grown(before, line, per)) for before, line in pairs)
    return [(step, more / by) for step, more, by in grown if more and by]


def shares(run: Recorded) -> list[Share]:
    """Return where each rank's time went; empty where no rank measured it."""
    found = []
    for told in [] if run.adds_up else tables(run.summary.get("ranks")):
        parts = {part: number(told.get(f"{part}_share")) for part in PARTS}
        if any(value is not None for value in parts.values()):
            seconds = number(told.get("seconds_median")) or 0.0
            found.append(Share(rank=_whole(told.get("rank")) or 0, seconds=seconds, parts=_to_one(parts)))
    for rank in [] if found else run.ranks:
        sums = {part: math.fsum(values(rank.steps, f"{part}_seconds")) for part in PARTS}
        if any(sums.values()):
            seconds = median(values(rank.steps, "seconds")) or 0.0
            found.append(Share(rank=rank.number, seconds=seconds, parts=_to_one(sums)))
    return found


def memory_by_rank(run: Recorded) -> list[Measured]:
    """Return the peak memory of each rank; the largest of all ranks where ranks were not logged."""
    largest = table(at(run.results, "memory_gib"))
    context = number(at(largest, "context"))
    told = [] if run.adds_up else tables(run.summary.get("ranks"))
    told = told or [{"rank": rank.number, **peaks(rank.steps)} for rank in run.ranks if rank.steps]
    found = [
        Measured(
            rank=_whole(rank.get("rank")) or 0,
            allocated=number(rank.get("peak_gib")),
            reserved=number(rank.get("reserved_gib")),
            context=context,
            host=number(rank.get("host_gib")),
        )
        for rank in told
    ]
    found = [one for one in found if (one.allocated, one.reserved, one.host) != (None, None, None)]
    if found or not largest:
        return found
    allocated, reserved = number(at(largest, "training")), number(at(largest, "reserved"))
    return [Measured(rank=None, allocated=allocated, reserved=reserved, context=context, host=None)]


def peaks(steps: Sequence[Json]) -> dict[str, float | None]:
    """The most memory that steps had, under the names of summary.json."""
    kinds = {"peak_gib": "allocated_gib", "reserved_gib": "reserved_gib", "host_gib": "host_gib"}
    return {name: max(values(steps, key), default=None) for name, key in kinds.items()}


def median(numbers: Iterable[float]) -> float | None:
    """Return the median of those that are finite."""
    finite = list(filter(math.isfinite, numbers))
    return statistics.median(finite) if finite else None


def mean(numbers: list[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def _to_one(parts: Mapping[str, float | None]) -> dict[str, float]:
    positive = {part: max(0.0, value or 0.0) for part, value in parts.items()}
    whole = math.fsum(positive.values())
    return {part: value / whole if whole else 0.0 for part, value in positive.items()}


def _grown(before: Json, line: Json, key: str) -> float | None:
    a, b = number(before.get(key)), number(line.get(key))
    return b - a if a is not None and b is not None and b > a else None


def _value(value: float) -> float:
    """Return a number that a chart can show, or NaN."""
    try:
        size = abs(float(value))
    except OverflowError:
        return math.nan
    return math.nan if not size < 1e100 else 0.0 if size < 1e-100 else float(value)


def _first(*values: Any) -> float | None:
    return next((found for value in values if (found := number(value)) is not None), None)


def _whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _held(run: Recorded, key: str) -> tuple[float | None, float | None]:
    return number(at(run.results, "before", key)), number(at(run.results, "after", key))


def _cards(run: Recorded) -> str:
    names = [text(rank.start.get("device")) for rank in run.ranks if rank.start.get("device")]
    names = names or [text(at(device, "name")) for device in rows(at(run.plan, "hardware", "devices"))]
    return " + ".join(dict.fromkeys(names))


def _steps(run: Recorded) -> int:
    """Return the steps behind the run, those before it was resumed included."""
    lines = [*run.steps[-1:], *(rank.steps[-1] for rank in run.ranks if rank.steps)]
    told = values([at(run.results, "training"), run.summary], "steps")
    return int(max([0.0, *values(lines, "step"), *told]))


def _finished(run: Recorded) -> float | None:
    lines = [line for rank in run.ranks for line in (rank.end, *rank.steps[-1:])]
    files = RunDirectory(run.directory)
    changed = (path.stat().st_mtime for path in (files.results, files.step_log) if path.is_file())
    return max(values(lines, "time"), default=None) or next(changed, None)


def _status(run: Recorded) -> tuple[Status, str]:
    """Return how it ended, and its error message if it failed."""
    failed = [*run.errors, *(rank.end for rank in run.ranks if rank.end.get("status") == "failed")]
    if failed:
        return "failed", text(failed[0].get("message")) or "a rank failed and left no message."
    ended = run.results or (run.ranks and all(rank.end for rank in run.ranks))
    return ("finished" if ended else "unfinished"), ""
