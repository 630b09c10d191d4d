"""The longest micro-batch that this rank will compute: the one that takes the most memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING, Any

from ..data.balance import cost
from .token_balance import MOST_STEPS, TokenBatches, drawn_in

if TYPE_CHECKING:
    from transformers import Trainer

MOST_ROWS = 5_000_000
"""Rows that are drawn to find the longest micro-batch, but for one epoch: a second for each million."""


@dataclass(frozen=True, kw_only=True)
class LongestBatch:
    rows: list[int]
    """Numbers of its rows, as the loader's batches have them."""
    tokens: int
    """Tokens that it is computed with, padding included."""
    step: int | None
    """The optimizer step that has it, counted from 1; None in an evaluation, and where the order is drawn later."""


def longest_in_training(trainer: Trainer, loader: Any, lengths: Sequence[int], *, padded: bool) -> LongestBatch:
    """Return this rank's longest micro-batch of the steps that are left, up to the end of training.

    `loader` is the prepared one, whose rows have `lengths` tokens and are padded to the longest of a micro-batch, or
    laid end to end. Neither it nor its sampler is moved. Where the order of the rows isn't known beforehand, it is the
    longest rows together, which a random order may never draw. So that it takes seconds, it is looked for in as many
    epochs as have `MOST_ROWS`, and, where rows are shared out by tokens, in the `MOST_STEPS` steps with the most of
    them.
    """
    batches, accumulation = loader.batch_sampler, trainer.args.gradient_accumulation_steps
    each = max(1, ceil(len(batches) / accumulation))  # steps of an epoch
    state = trainer.state
    epochs = range(state.global_step // each, ceil(state.max_steps / each))
    epochs = epochs[: max(1, MOST_ROWS // len(lengths))]
    done = 0 if trainer.args.ignore_data_skip else state.global_step
    shared_out = isinstance(batches, TokenBatches)
    draws, in_a_step = (batches.of_steps(), 1) if shared_out else (batches, accumulation)
    drawn: Iterable[tuple[int, list[int]]] = (
        (step, rows)
        for epoch, all_rows in enumerate(drawn_in(epochs, loader.get_sampler(), draws), epochs.start)
        for number, rows in enumerate(all_rows)
        if done < (step := epoch * each + number // in_a_step + 1) <= state.max_steps
    )
    if shared_out:
        most = nlargest(MOST_STEPS, drawn, key=lambda one: sum(map(lengths.__getitem__, one[1])))
        drawn = ((step, rows) for step, whole in sorted(most) for rows in batches.own(whole))
    return _longest(drawn, lengths, batches.batch_size, padded=padded)


def longest_in_evaluation(loader: Any, lengths: Sequence[int], *, padded: bool) -> LongestBatch:
    """Return this rank's longest batch of the prepared evaluation `loader`."""
    batches = loader.batch_sampler
    drawn = ((None, rows) for all_rows in drawn_in((0,), loader.get_sampler(), batches) for rows in all_rows)
    return _longest(drawn, lengths, batches.batch_size, padded=padded)


def _longest(
    batches: Iterable[tuple[int | None, list[int]]], lengths: Sequence[int], size: int, *, padded: bool
) -> LongestBatch:
    """Return the longest of `batches`; where there are none, the `size` longest rows together."""

    def tokens(rows: list[int]) -> int:
        # A row that only keeps its rank in step has a negative number (`token_balance.MaskedRow`).
        return cost([lengths[row if row >= 0 else -1 - row] for row in rows], padded=padded)

    step, rows = max(batches, key=lambda one: tokens(one[1]), default=(None, []))
    rows = rows or nlargest(size, range(len(lengths)), key=lengths.__getitem__)
    return LongestBatch(rows=rows, tokens=tokens(rows), step=step)
