"""Statistics of row lengths: their distribution, what padding wastes and what packing would gain."""

from __future__ import annotations

import random
import statistics
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 12


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of rows in tokens, before truncation; `padding` and `packed` are after it."""

    rows: int
    over: int
    """Rows longer than the limit."""
    mean: float
    median: float
    p95: int
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    """Bins of the lengths: lowest and highest (both inclusive), and number of rows."""
    padding: float
    """Share of a padded batch that is padding, the mean over batches in a random order."""
    packed: int
    """Number of rows of the limit's length after best-fit-decreasing packing."""

    @property
    def rows_each(self) -> float:
        """Mean number of rows in a packed row."""
        return self.rows / self.packed


def lengths_of(lengths: Sequence[int], limit: int, batch: int) -> Lengths:
    """Return the statistics of at least one row; `batch` rows are padded together."""
    ordered = sorted(lengths)
    kept = [min(length, limit) for length in lengths]
    return Lengths(
        rows=len(ordered),
        over=sum(length > limit for length in ordered),
        mean=statistics.fmean(ordered),
        median=statistics.median(ordered),
        p95=ordered[min(len(ordered) - 1, -(-95 * len(ordered) // 100) - 1)],
        longest=ordered[-1],
        histogram=_histogram(ordered),
        padding=_padding(kept, batch),
        packed=len(best_fit(kept, limit)),
    )


def _histogram(ordered: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    low, high = ordered[0], ordered[-1]
    width = max(1, -(-(high - low + 1) // BINS))
    bins = [(start, min(start + width - 1, high)) for start in range(low, high + 1, width)]
    return tuple((start, end, bisect_left(ordered, end + 1) - bisect_left(ordered, start)) for start, end in bins)


def _padding(lengths: Sequence[int], batch: int) -> float:
    shuffled = random.Random(0).sample(list(lengths), len(lengths))
    batches = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    whole = sum(max(rows) * len(rows) for rows in batches)
    return 1 - sum(lengths) / whole if whole else 0.0


def best_fit(lengths: Sequence[int], limit: int) -> list[int]:
    """Return the tokens in each packed row, filled best-fit decreasing: longest first, into the fullest with room."""
    room: list[int] = []  # of each packed row, ascending
    for length in sorted(lengths, reverse=True):
        index = bisect_left(room, length)
        left = room.pop(index) if index < len(room) else limit
        insort(room, left - length)
    return [limit - left for left in room]
