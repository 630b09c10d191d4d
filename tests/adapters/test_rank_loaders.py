"""What of a loader is compared over ranks, and how; two real processes are in test_saving_everywhere.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from unsloth_accel.adapters import rank_agreement, rank_loaders
from unsloth_accel.adapters.rank_checks import GuardError
from unsloth_accel.adapters.token_balance import TokenBatches

Ranks = Callable[[list[Any]], None]


class Rows(Dataset[Any]):
    """Ten rows that lie in memory."""

    def __init__(self) -> None:
        self.rows = [{"input_ids": [row, row + 1], "extra": 1} for row in range(10)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


def collate(rows: Any) -> Any:
    for row in rows:
        row.pop("extra")
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids.clone(), "scale": ids / 3}


def loader(collator: Any = collate, order: Any = None, processes: int = 2, **options: Any) -> Any:
    batches = BatchSampler(order or SequentialSampler(range(10)), 2, drop_last=False)
    shard = BatchSamplerShard(batches, num_processes=processes, process_index=0)
    return DataLoaderShard(Rows(), batch_sampler=shard, collate_fn=collator, **options)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Lets the others give these, behind what rank 0 gives."""

    def others(values: list[Any]) -> None:
        for module in (rank_loaders, rank_agreement):
            monkeypatch.setattr(module, "of_every_rank", lambda own: [own, *values])

    return others


def marks(order: Any, drawn: int | None = None) -> tuple[int, list[str]]:
    """What a rank that draws `order` tells after so many draws."""
    source = rank_loaders.Drawn(order)
    given = iter(source)
    for _ in range(len(order) + 1 if drawn is None else drawn):
        next(given, None)
    return source.begun, source.marks


def test_orders_are_compared_as_far_as_all_have_drawn(ranks: Ranks) -> None:
    drawn = rank_loaders.Drawn(range(10))
    given = iter(drawn)
    for _ in range(5):
        next(given)
    check = {0: drawn}
    ranks([{0: marks(range(10), 2)}, {0: marks(range(10))}, {0: marks([], 0)}, {}])
    rank_loaders.check_drawn(check)
    ranks([{0: marks([0, 1, 2, 3, 5, 4, 6, 7, 8, 9], 4)}])
    rank_loaders.check_drawn(check)  # they differ behind what was compared
    ranks([{0: marks(range(10))}, {0: marks([1, 0, *range(2, 10)], 1)}, {0: marks(range(3))}])
    with pytest.raises(GuardError, match="ranks 2, 3 draw the rows of this epoch in another order than rank 0"):
        rank_loaders.check_drawn(check)
    list(given)
    ranks([{0: marks([0, 1, 2, 3, 5, 4, 6, 7, 8, 9])}])
    with pytest.raises(GuardError, match="rank 1 draws the rows"):
        rank_loaders.check_drawn(check)
    given = iter(drawn)
    next(given)  # of a second pass, in which the other is not yet
    rank_loaders.check_drawn(check)


def test_a_pass_is_compared_at_its_end_in_the_next(ranks: Ranks) -> None:
    """A loop of one's own is not asked just when a pass ends."""

    def second(first: list[int], broken_off: bool = False) -> Any:
        drawn = rank_loaders.Drawn([])
        for source in (first, [1, 2]):
            drawn.source = source
            given = iter(drawn)
            for _ in range(len(first) - broken_off if source is first else 0):
                next(given)
            next(given, None)
        return drawn

    one = second([0, 1, 2])
    ranks([{0: (2, second([0, 1, 2]).marks)}, {0: (2, second([0, 2, 2], broken_off=True).marks)}])
    rank_loaders.check_drawn({0: one})
    ranks([{0: (2, second([0, 1, 3]).marks)}])
    with pytest.raises(GuardError, match="rank 1 draws"):
        rank_loaders.check_drawn({0: one})


def test_an_order_is_drawn_as_it_was_and_its_sampler_is_reached_through_it() -> None:
    """Nothing is drawn ahead of the loader; accelerate and the Trainer look for names of the sampler."""
    ahead: list[int] = []

    class Slow(SequentialSampler):
        epoch = 0

        def __iter__(self) -> Any:
            for row in range(10):
                ahead.append(row)
                yield row

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    made = loader(order=Slow(range(10)))
    plain = [batch["input_ids"][:, 0].tolist() for batch in loader(order=SequentialSampler(range(10)))]
    drawn = rank_loaders.watch(made)
    assert drawn is not None
    assert rank_loaders.watch(made) is drawn
    batches = iter(made)
    assert next(batches)["input_ids"][:, 0].tolist() == plain[0]
    assert ahead == list(range(8))  # a batch for each rank, twice, as accelerate does without it
    assert [batch["input_ids"][:, 0].tolist() for batch in batches] == plain[1:]
    assert drawn.batch_size == 2
    assert len(drawn) == 5
    made.set_epoch(3)
    assert drawn.sampler.epoch == 3


def test_only_what_is_shared_out_of_one_order_is_compared() -> None:
    assert rank_loaders.watch(None) is None
    assert rank_loaders.watch(torch.utils.data.DataLoader(Rows())) is None
    assert rank_loaders.watch(loader(processes=1)) is None
    assert rank_loaders.facts_of(loader(processes=1)) == {}
    balanced = TokenBatches(
        SequentialSampler(range(10)), [2] * 10, rows=4, ranks=2, rank=1, accumulation=1, padded=True
    )
    drawn = rank_loaders.watch(DataLoaderShard(Rows(), batch_sampler=balanced, collate_fn=collate))
    assert drawn is not None
    before = list(balanced)
    assert drawn.marks[-1].startswith("10 draws")
    assert len(before) == len(balanced) == 3


def test_the_facts_of_a_loader() -> None:
    made = loader()
    facts = rank_loaders.facts_of(made)
    assert facts == rank_loaders.facts_of(loader())
    assert len(list(made)) == 3, "rows are whole after they were collated"
    probe = "what the collator makes of rows 0, 3, 6, 9"
    assert facts["rows per batch"] == 2
    assert facts["length of the order"] == 5
    assert facts[f"{probe}: labels"].startswith("int64 (4, 2), fingerprint ")

    def other(rows: Any) -> Any:
        batch = collate(rows)
        batch["labels"][2, 1] = -100
        return {**batch, "scale": batch["scale"] + 1e-7, "more": 1}

    changed = rank_loaders.facts_of(loader(other))
    different = {name for name in facts.keys() | changed.keys() if facts.get(name) != changed.get(name)}
    assert different == {f"{probe}: labels", f"{probe}: more"}


def test_what_fails_here_is_left_to_training() -> None:
    def failing(rows: Any) -> Any:
        raise KeyError("text")

    assert rank_loaders.facts_of(loader(failing))["what the collator makes of rows 0, 3, 6, 9"] == "KeyError"


def test_the_generators_are_as_they_were() -> None:
    def drawing(rows: Any) -> Any:
        return {"labels": torch.randint(9, (4,)) + random.randrange(9) + int(numpy.random.randint(9))}

    def state() -> Any:
        return random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()

    before = state()
    facts = rank_loaders.facts_of(loader(drawing))
    assert state() == before
    random.seed(7)
    torch.manual_seed(7)
    assert rank_loaders.facts_of(loader(drawing)) == facts, "ranks may be seeded otherwise"


def test_what_is_drawn_at_random_is_not_compared(ranks: Ranks) -> None:
    own = random.Random(1)

    def drawing(rows: Any) -> Any:
        return {"input_ids": [1], "labels": [own.random() for _ in rows]}

    facts = rank_loaders.facts_of(loader(drawing))
    probe = "what the collator makes of rows 0, 3, 6, 9"
    assert facts[f"{probe}: labels"] is rank_agreement.UNKNOWN
    told = {name: repr(value) for name, value in facts.items()}
    ranks([told | {f"{probe}: labels": "'int64 (4, 2), fingerprint 12345678'"}])
    rank_agreement.check_same(facts)
    ranks([told | {f"{probe}: input_ids": "'other'"}])
    with pytest.raises(GuardError, match="input_ids is 'other' on rank 1"):
        rank_agreement.check_same(facts)
    # In workers a data set may open its file with its first row, which must not be before they are forked.
    assert rank_loaders.facts_of(loader(num_workers=1))["what the collator makes of rows"] is rank_agreement.UNKNOWN
    ranks([{name: repr(value) for name, value in rank_loaders.facts_of(loader()).items()}])
    rank_agreement.check_same(rank_loaders.facts_of(loader(num_workers=1)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1, 2], [2, 1], False),
        (torch.tensor([1, 2]), torch.tensor([2, 1]), False),
        (torch.tensor([True]), torch.tensor([1]), False),
        (numpy.array([1, 2]), numpy.array([1, 3]), False),
        (torch.tensor([1.0]), torch.tensor([1.1]), True),
        (torch.zeros(1), torch.zeros(2), False),
        ({"a": [1, "x"]}, {"a": [1, "y"]}, False),
        (0.1 + 0.2, 0.3, True),
        (object(), object(), True),
        (None, 0, False),
    ],
)
def test_descriptions(one: Any, other: Any, same: bool) -> None:
    assert (rank_loaders._described(one) == rank_loaders._described(other)) == same
