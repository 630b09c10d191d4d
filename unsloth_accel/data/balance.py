"""The rows of one optimizer step, divided into micro-batches of as equal cost as possible.

Ranks wait for each other in every step, so a step takes as long as its most expensive share. Which rows are in the step
is not changed, only who gets them: with a loss weighted by tokens over all ranks the gradient is the same sum.

A micro-batch is *flat* where rows are laid end to end without padding (TRL's `padding_free`, Unsloth's default on
GPUs): it costs the sum of its rows' tokens. It is *padded* otherwise: number of rows × tokens of the longest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapreplace


def divide(lengths: Sequence[int], groups: int, *, padded: bool) -> list[list[int]]:
    """Indices into `lengths` (tokens per row), every one once, in `groups` lists, the most expensive first.

    With at least as many rows as groups none is empty. Deterministic: equal input, equal output, on every rank.

    Flat: longest processing time first (R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math.
    17, 1969): the most expensive group costs at most 4/3 - 1/(3 groups) of the best possible, groups differ by at most
    the longest row, and no group costs more than the longest row × ceil(rows / groups), so that what was planned for
    full micro-batches of that many rows holds.
    Padded: rows in order of length, cut into runs; the smallest cost of the most expensive run, found by bisection, is
    the best possible over all divisions, since exchanging two rows that are out of order never lowers it.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    found = _cut(order, lengths, groups) if padded else _deal(order, lengths, groups)
    return sorted(found, key=lambda group: -cost([lengths[row] for row in group], padded=padded))


def share(lengths: Sequence[int], ranks: int, accumulation: int, *, padded: bool) -> list[list[list[int]]]:
    """Indices into `lengths` by rank and then by micro-batch: `accumulation` of them for each of `ranks` ranks.

    Micro-batches that ranks run at the same time cost alike, since a sharded model's ranks meet in each; and which rank
    gets the most expensive one alternates, so that the sums over the step are alike too. Where the slowest rank would
    have less with its rows by number, in their order, it has them so.
    """
    groups = divide(lengths, ranks * accumulation, padded=padded)
    slots = [groups[slot * ranks : (slot + 1) * ranks] for slot in range(accumulation)]
    dealt = [together[::-1] if slot % 2 else together for slot, together in enumerate(slots)]
    found = [list(own) for own in zip(*dealt, strict=True)]
    numbered = [] if len(lengths) % (ranks * accumulation) else by_number(len(lengths), ranks, accumulation)

    def slowest(shares: list[list[list[int]]]) -> int:
        return max(sum(costs) for costs in costs_of(lengths, shares, padded=padded))

    return numbered if numbered and slowest(numbered) < slowest(found) else found


def by_number(rows: int, ranks: int, accumulation: int) -> list[list[list[int]]]:
    """Return what accelerate gives each rank: micro-batches of as many rows, in order, in turn."""
    each = -(-rows // (ranks * accumulation))
    batches = [list(range(rows)[turn * each : (turn + 1) * each]) for turn in range(ranks * accumulation)]
    return [batches[rank::ranks] for rank in range(ranks)]


def costs_of(lengths: Sequence[int], shares: list[list[list[int]]], *, padded: bool) -> list[list[int]]:
    """Return the cost of each rank's micro-batches."""
    return [[cost([lengths[row] for row in group], padded=padded) for group in own] for own in shares]


def cost(lengths: Sequence[int], *, padded: bool) -> int:
    """Return the tokens that a micro-batch of rows of `lengths` is computed with, padding included."""
    return len(lengths) * max(lengths, default=0) if padded else sum(lengths)


def _deal(order: list[int], lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Assign each row to the group with the fewest tokens so far; of equal ones, to that with fewer rows."""
    found: list[list[int]] = [[] for _ in range(groups)]
    heap = [(0, 0, group) for group in range(groups)]
    for row in order:
        tokens, rows, group = heap[0]
        found[group].append(row)
        heapreplace(heap, (tokens + lengths[row], rows + 1, group))
    return found


def _cut(order: list[int], lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Return runs of `order` (longest first) whose most expensive costs as little as possible."""
    if not order:
        return [[] for _ in range(groups)]
    longest = lengths[order[0]]
    possible = range(longest, longest * -(-len(order) // groups))  # beyond its end every one is enough
    enough = bisect_left(possible, True, key=lambda most: len(_runs(order, lengths, groups, most)) <= groups)
    found = _runs(order, lengths, groups, longest + enough)
    return found + [[] for _ in range(groups - len(found))]


def _runs(order: list[int], lengths: Sequence[int], groups: int, most: int) -> list[list[int]]:
    """Return runs that cost at most `most`, each as long as it can be while a row is left for every group after it."""
    found: list[list[int]] = []
    start = 0
    while start < len(order):
        left = len(order) - start
        wanted = max(1, left - max(0, groups - len(found) - 1))
        taken = min(most // max(1, lengths[order[start]]), wanted)
        found.append(order[start : start + max(1, taken)])
        start += max(1, taken)
    return found
