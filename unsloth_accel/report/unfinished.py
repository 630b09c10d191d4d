"""logs/summary.json of a run that failed, from what its ranks had logged by then: they write one at the end only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..artifacts.run_directory import RunDirectory
from ..files import write_atomically
from .figures import PARTS, median, peaks
from .run_record import Json, Rank, number, read_run_record, values


def summarise(directory: str | Path, since: float, message: str) -> None:
    """Write the summary of a run in `directory` that was started at `since` (Unix seconds) and ended with `message`.

    Where it failed after training its summary is there, and gets how it ended. Does nothing where no rank has logged a
    step since then: what is there may be of an earlier attempt. Raises `OSError` where it can't be written.
    """
    path, run = RunDirectory(directory).summary, read_run_record(directory)
    ended = {"status": "failed", "message": message}
    if run.summary and path.stat().st_mtime >= since:
        write_atomically(path, json.dumps({**run.summary, **ended}, indent=2) + "\n")
        return
    steps = {rank.number: _later(rank.steps, since) for rank in run.ranks}
    if not any(steps.values()):
        return
    stepping = max(_sum(own, "seconds") or 0.0 for own in steps.values())
    tokens = sum(int(_sum(own, "tokens") or 0) for own in steps.values())
    rate = tokens / stepping if stepping else 0.0
    ranks = [_figures(rank, steps[rank.number]) for rank in run.ranks]
    summary = {
        **ended,
        "steps": max(map(len, steps.values())),
        "seconds": round(max(_lasted(rank, steps[rank.number]) for rank in run.ranks), 3),
        "tokens": tokens,
        "tokens_per_second": round(rate, 1),
        "tokens_per_second_per_gpu": round(rate / len(run.ranks), 1),
        "mfu": None,
        "mfu_why": "the run ended before it was computed.",
        "step_seconds_median": max((one["seconds_median"] for one in ranks if one["seconds_median"]), default=None),
        "ranks": ranks,
        "stragglers": [],  # named by its warnings
        "warnings": _later(run.messages, since),
    }
    write_atomically(path, json.dumps(summary, indent=2) + "\n")


def _figures(rank: Rank, steps: list[Json]) -> dict[str, Any]:
    """Return the figures that a finished run's summary has of each rank."""
    seconds = _sum(steps, "seconds")
    shares = {part: _sum(steps, f"{part}_seconds") for part in PARTS}
    middle = median(values(steps, "seconds"))
    return {
        "rank": rank.number,
        "host": rank.start.get("host"),
        "device": rank.start.get("device"),
        "seconds_median": None if middle is None else round(middle, 4),
        **{
            f"{part}_share": round(spent / seconds, 4) if spent is not None and seconds else None
            for part, spent in shares.items()
        },
        "tokens": int(_sum(steps, "tokens") or 0),
        **peaks(steps),
    }


def _lasted(rank: Rank, steps: list[Json]) -> float:
    """Seconds from the start of training to the last line of a step."""
    times, started = values(steps, "time"), number(rank.start.get("time"))
    return max(0.0, max(times) - started) if times and started is not None else 0.0


def _later(lines: Iterable[Json], since: float) -> list[Json]:
    """Return the lines that were written at `since` or after it."""
    return [line for line in lines if (number(line.get("time")) or 0) >= since]


def _sum(steps: list[Json], key: str) -> float | None:
    """Return the sum over `steps`, or None where a step lacks the key."""
    found = values(steps, key)
    return math.fsum(found) if len(found) == len(steps) and steps else None
