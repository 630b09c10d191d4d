"""logs/summary.json of a run that failed, from what its ranks had logged by then: they write one at the end only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .figures import figures, memory, shares
from .recorded import Recorded, read

SUMMARY = Path("logs", "summary.json")


def summarise(directory: str | Path) -> None:
    """Write the summary of the run in `directory`; of one that failed after training, add how it ended.

    Does nothing where no rank has logged a step. Raises `OSError` where it can't be written.
    """
    run = read(directory)
    told = figures(run)
    ended = {"status": told.status, "message": told.message}
    if run.summary:
        values = {**run.summary, **ended}
    elif any(rank.steps for rank in run.ranks):
        values = {
            **ended,
            "steps": max(len(rank.steps) for rank in run.ranks),
            "seconds": _rounded(told.seconds),
            "tokens": told.tokens,
            "tokens_per_second": _rounded(told.tokens_per_second),
            "tokens_per_second_per_gpu": _rounded(told.tokens_per_second_per_gpu),
            "mfu": None,
            "mfu_why": "the run ended before it was computed.",
            "step_seconds_median": _rounded(told.step_seconds, 4),
            "ranks": _ranks(run),
            "stragglers": [],  # named by its warnings
            "warnings": list(run.messages),
        }
    else:
        return
    write_atomically(Path(directory, SUMMARY), json.dumps(values, indent=2) + "\n")


def _ranks(run: Recorded) -> list[dict[str, Any]]:
    """As a finished run has them."""
    parts = {share.rank: share for share in shares(run)}
    peaks = {peak.rank: peak for peak in memory(run)}
    found = []
    for rank in run.ranks:
        share, peak = parts.get(rank.number), peaks.get(rank.number)
        found.append(
            {
                "rank": rank.number,
                "host": rank.start.get("host"),
                "device": rank.start.get("device"),
                "seconds_median": _rounded(share.seconds, 4) if share else None,
                **{f"{part}_share": _rounded(value, 4) for part, value in (share.parts if share else {}).items()},
                "tokens": sum(int(step.get("tokens") or 0) for step in rank.steps),
                "peak_gib": peak.allocated if peak else None,
                "reserved_gib": peak.reserved if peak else None,
                "host_gib": peak.host if peak else None,
            }
        )
    return found


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
