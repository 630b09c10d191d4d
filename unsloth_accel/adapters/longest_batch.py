"""The longest micro-batch that this rank will compute: the one that takes the most memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from ..data.balance import cost
from .token_balance import drawn_in

if TYPE_CHECKING:
    from transformers import Trainer


@dataclass(frozen=True, kw_only=True)
class LongestBatch:
    rows: list[int]
    """Numbers of its rows, as the loader's batches have them."""
    tokens: int
    """Tokens that it is computed with, padding included."""
    step: int | None
    """The optimizer step that has it, counted from 1; None in an evaluation, and where the order is drawn later."""


def longest_in_training(trainer: Trainer, loader: Any, lengths: Sequence[int], *, padded: bool) -> LongestBatch:
    """Return this rank's longest micro-batch from the epoch that begins or goes on until the end of training.

    `loader` is the prepared one, whose rows have `lengths` tokens and are padded to the longest of a micro-batch, or
    laid end to end. Neither it nor its sampler is moved. Where the order of the rows isn't known beforehand, it is the
    longest rows together, which a random order may never draw.
    """
    batches, accumulation = loader.batch_sampler, trainer.args.gradient_accumulation_steps
    each = max(1, ceil(len(batches) / accumulation))  # steps of an epoch
    epochs = range(trainer.state.global_step // each, ceil(trainer.state.max_steps / each))
    found = [
        (epoch * each + number // accumulation + 1, rows)
        for epoch, drawn in enumerate(drawn_in(epochs, loader.get_sampler(), batches), epochs.start)
        for number, rows in enumerate(drawn)
    ]
    steps = [(step, rows) for step, rows in found if step <= trainer.state.max_steps]
    return _longest(steps or [(None, _longest_rows(lengths, batches.batch_size))], lengths, padded=padded)


def longest_in_evaluation(loader: Any, lengths: Sequence[int], *, padded: bool) -> LongestBatch:
    """Return this rank's longest batch of the prepared evaluation `loader`."""
    batches = loader.batch_sampler
    (drawn,) = list(drawn_in((0,), loader.get_sampler(), batches)) or [[_longest_rows(lengths, batches.batch_size)]]
    return _longest([(None, rows) for rows in drawn], lengths, padded=padded)


def _longest_rows(lengths: Sequence[int], count: int) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])[:count]


def _longest(batches: Iterable[tuple[int | None, list[int]]], lengths: Sequence[int], *, padded: bool) -> LongestBatch:
    def tokens(rows: list[int]) -> int:
        # A row that only keeps its rank in step has a negative number (`token_balance.MaskedRow`).
        return cost([lengths[row if row >= 0 else -1 - row] for row in rows], padded=padded)

    step, rows = max(batches, key=lambda one: tokens(one[1]))
    return LongestBatch(rows=rows, tokens=tokens(rows), step=step)
