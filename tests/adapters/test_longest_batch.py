from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from unsloth_accel.adapters import longest_batch
from unsloth_accel.adapters.longest_batch import longest_in_evaluation, longest_in_training
from unsloth_accel.adapters.token_balance import TokenBatches

LENGTHS = [9, 1, 2, 3, 4, 5, 6, 8]


class BackAndForth:
    """A sampler of rows in order in even epochs, and the other way round in odd ones."""

    def __init__(self, rows: int = len(LENGTHS)) -> None:
        self.rows = rows
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(range(self.rows), reverse=bool(self.epoch % 2)))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def _loader(batches: Any, sampler: Any) -> Any:
    return SimpleNamespace(batch_sampler=batches, get_sampler=lambda: sampler)


def _trainer(*, step: int = 0, steps: int, accumulation: int = 1, ignore_data_skip: bool = False) -> Any:
    state = SimpleNamespace(global_step=step, max_steps=steps)
    args = SimpleNamespace(gradient_accumulation_steps=accumulation, ignore_data_skip=ignore_data_skip)
    return SimpleNamespace(args=args, state=state)


@pytest.mark.parametrize(
    ("steps", "step", "padded", "rows", "tokens", "at"),
    [
        (4, 0, True, [0, 1], 18, 1),  # 9 beside 1, padded to 9
        (4, 0, False, [6, 7], 14, 4),
        (3, 0, False, [0, 1], 10, 1),  # training ends before the longest
        (8, 5, False, [1, 0], 10, 8),  # goes on in the second epoch, in the other order, whose longest is behind it
        (8, 0, False, [6, 7], 14, 4),
        (4, 1, True, [6, 7], 16, 4),  # the first step is behind it
    ],
)
def test_the_longest_of_the_steps_that_will_be_made(
    steps: int, step: int, padded: bool, rows: list[int], tokens: int, at: int
) -> None:
    sampler = BackAndForth()
    sampler.epoch = 7
    loader = _loader(BatchSampler(sampler, 2, drop_last=False), sampler)
    found = longest_in_training(_trainer(steps=steps, step=step), loader, LENGTHS, padded=padded)
    assert (found.rows, found.tokens, found.step) == (rows, tokens, at)
    assert sampler.epoch == 7


def test_micro_batches_count_by_steps() -> None:
    sampler = BackAndForth()
    loader = _loader(BatchSampler(sampler, 2, drop_last=False), sampler)
    found = longest_in_training(_trainer(steps=2, accumulation=2), loader, LENGTHS, padded=False)
    assert (found.rows, found.step) == ([6, 7], 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_has_its_own_share(rank: int) -> None:
    """Shared out by tokens; in the last step of an epoch rank 1 has a row that keeps it in step."""
    lengths = LENGTHS[:5]
    sampler = BackAndForth(len(lengths))
    batches = TokenBatches(sampler, lengths, rows=4, ranks=2, rank=rank, accumulation=1, padded=False)
    found = longest_in_training(_trainer(steps=2), _loader(batches, sampler), lengths, padded=False)
    assert (found.tokens, found.step) == ((9, 1), (6, 1))[rank]


def test_rows_that_are_begun_anew_count_again() -> None:
    """ignore_data_skip: a run that goes on in the middle of an epoch trains its first rows again."""
    sampler = BackAndForth()
    loader = _loader(BatchSampler(sampler, 2, drop_last=False), sampler)
    found = longest_in_training(_trainer(steps=4, step=1, ignore_data_skip=True), loader, LENGTHS, padded=True)
    assert (found.rows, found.tokens) == ([0, 1], 18)


def test_many_steps_are_not_all_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those with the most tokens are: here the last one of an epoch."""
    monkeypatch.setattr(longest_batch, "MOST_STEPS", 1)
    sampler, shared = BackAndForth(), []

    class Counted(TokenBatches):
        def own(self, step: list[int]) -> list[list[int]]:
            shared.append(step)
            return super().own(step)

    batches = Counted(sampler, LENGTHS, rows=4, ranks=2, rank=0, accumulation=1, padded=False)
    found = longest_in_training(_trainer(steps=2), _loader(batches, sampler), LENGTHS, padded=False)
    assert (shared, found.tokens, found.step) == ([[4, 5, 6, 7]], 12, 2)


def test_many_epochs_are_not_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longest_batch, "MOST_ROWS", 20)
    seen: list[int] = []

    class Seen(BackAndForth):
        def set_epoch(self, epoch: int) -> None:
            super().set_epoch(epoch)
            seen.append(epoch)

    sampler = Seen()
    longest_in_training(
        _trainer(steps=40), _loader(BatchSampler(sampler, 2, drop_last=False), sampler), LENGTHS, padded=False
    )
    assert seen == [0, 1, 0]


def test_an_order_that_nobody_knows() -> None:
    """Any rows may meet, so the longest do; and the order that is drawn later is not drawn now."""
    import torch

    sampler = RandomSampler(LENGTHS, generator=torch.Generator().manual_seed(0))
    state = sampler.generator.get_state()
    found = longest_in_training(
        _trainer(steps=4), _loader(BatchSampler(sampler, 2, False), sampler), LENGTHS, padded=True
    )
    assert (found.rows, found.tokens, found.step) == ([0, 7], 18, None)
    assert bool((sampler.generator.get_state() == state).all())


def test_the_longest_in_an_evaluation() -> None:
    sampler = SequentialSampler(LENGTHS)
    found = longest_in_evaluation(_loader(BatchSampler(sampler, 3, False), sampler), LENGTHS, padded=True)
    assert (found.rows, found.tokens, found.step) == ([0, 1, 2], 27, None)


def test_an_evaluation_without_a_whole_batch() -> None:
    """dataloader_drop_last: the rows are evaluated all the same (`held_out_loss`)."""
    sampler = SequentialSampler(LENGTHS)
    found = longest_in_evaluation(_loader(BatchSampler(sampler, 9, True), sampler), LENGTHS, padded=True)
    assert (len(found.rows), found.tokens) == (8, 72)
