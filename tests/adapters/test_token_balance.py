"""Rows shared out by tokens: the batches that a rank draws."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


class Order:
    """A sampler whose order goes with the epoch, as accelerate's seeded one."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.rows))
        Random(self.epoch).shuffle(order)
        return iter(order)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@st.composite
def settings_of_loaders(draw: st.DrawFn) -> dict[str, Any]:
    ranks, accumulation, per_device = draw(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)))
    return {
        "lengths": draw(st.lists(st.integers(1, 200), min_size=1, max_size=90)),
        "rows": ranks * accumulation * per_device,
        "ranks": ranks,
        "accumulation": accumulation,
        "padded": draw(st.booleans()),
    }


def micro_batches(values: dict[str, Any], epoch: int = 0, **more: Any) -> list[list[list[int]]]:
    """By rank, what accelerate's loader would draw in an epoch."""
    from unsloth_accel.adapters.token_balance import TokenBatches

    found = []
    for rank in range(values["ranks"]):
        sampler = Order(len(values["lengths"]))
        batches = TokenBatches(sampler, rank=rank, **{**values, **more})
        sampler.set_epoch(epoch)
        found.append(list(batches))
        assert len(batches) == len(found[-1])
    return found


@settings(deadline=None)
@given(settings_of_loaders(), st.integers(0, 3))
def test_an_epoch_has_every_row_once(values: dict[str, Any], epoch: int) -> None:
    """In the sampler's steps, over all ranks; what is there twice is masked; ranks run as many micro-batches."""
    ranks = micro_batches(values, epoch)
    assert len({len(own) for own in ranks}) == 1
    order = Order(len(values["lengths"]))
    order.set_epoch(epoch)
    expected = list(order)
    rows, accumulation = values["rows"], values["accumulation"]
    for step in range(-(-len(expected) // rows)):
        own = [group for rank in ranks for group in rank[step * accumulation : (step + 1) * accumulation]]
        assert all(own)
        assert sorted(row for group in own for row in group if row >= 0) == sorted(expected[step * rows :][:rows])
        assert all(len(group) == 1 for group in own if group[0] < 0)
        assert sum(group[0] < 0 for group in own) < values["ranks"] or len(own) <= values["ranks"]


@settings(deadline=None)
@given(settings_of_loaders())
def test_resuming_in_the_middle_of_an_epoch(values: dict[str, Any]) -> None:
    """accelerate skips micro-batches: the same rows follow, also on another number of ranks."""
    whole = micro_batches(values)[0]
    assert whole == micro_batches(values)[0]
    alone = {**values, "ranks": 1, "accumulation": values["accumulation"] * values["ranks"]}
    done = values["accumulation"]
    several = [row for own in micro_batches(values) for group in own[done:] for row in group if row >= 0]
    one = [row for group in micro_batches(alone)[0][done * values["ranks"] :] for row in group]
    assert sorted(several) == sorted(one)


def test_dropping_the_last_step() -> None:
    values = {"lengths": [5] * 11, "rows": 4, "ranks": 2, "accumulation": 1, "padded": False}
    assert [len(own) for own in micro_batches(values)] == [3, 3]
    assert [len(own) for own in micro_batches(values, drop_last=True)] == [2, 2]


@pytest.mark.parametrize("flat", [False, True])
def test_a_masked_row_teaches_nothing(flat: bool) -> None:
    """With TRL's own collator: the rows of a batch as they are, and one that only keeps a rank in step."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from unsloth_accel.adapters.token_balance import _Collate, _Rows

    rows = _Rows([{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [5, 6], "labels": [5, 6]}])
    collate = _Collate(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=flat))
    assert int((collate(rows.__getitems__([0, 1]))["labels"] >= 0).sum()) == (3 if flat else 4)
    masked = collate(rows.__getitems__([-1]))
    assert masked["input_ids"].tolist() == [[7, 8, 9]]
    assert masked["labels"].tolist() == [[-100, -100, -100]]


def test_boundaries_are_those_of_the_rows_that_a_rank_gets() -> None:
    """As TRL 1.16's collator says them, whichever is installed: rows are dealt out before they are collated."""
    import torch

    from unsloth_accel.adapters.token_balance import MaskedRow, TokenBatches, _Collate, _Rows

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        ids = torch.cat([torch.tensor(row["input_ids"]) for row in rows])[None]
        numbers = torch.arange(len(rows)).repeat_interleave(lengths)[None]
        longest = int(lengths.max())
        sides = {f"cu_seq_lens_{side}": ends for side in "qk"} | {f"max_length_{side}": longest for side in "qk"}
        return {"input_ids": ids, "labels": ids.clone(), "seq_idx": numbers, **sides}

    lengths = [3, 9, 1, 4, 2, 8, 5, 7, 6]  # an epoch of two whole steps, and one of a single row
    rows = _Rows([{"input_ids": [row + 1] * length} for row, length in enumerate(lengths)])
    trained: list[int] = []
    for rank in range(2):
        batches = TokenBatches(
            Order(len(lengths)), lengths, rows=4, ranks=2, rank=rank, accumulation=1, padded=False, drop_last=False
        )
        for group in batches:
            chosen = rows.__getitems__(group)
            batch = _Collate(collate)(chosen)
            ends = batch["cu_seq_lens_q"].tolist()
            found = [batch["input_ids"][0, start:end].tolist() for start, end in pairwise(ends)]
            assert found == [row["input_ids"] for row in chosen]
            assert batch["max_length_q"] == max(map(len, found))
            assert batch["seq_idx"].shape == batch["input_ids"].shape
            masked = isinstance(chosen[0], MaskedRow)
            assert bool((batch["labels"] == -100).all()) is masked
            trained += [] if masked else [row[0] for row in found]
    assert sorted(trained) == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize(
    ("row", "length"),
    [
        ({"input_ids": [1] * 5, "token_type_ids": [0] * 5}, 5),
        ({"prompt_ids": [1] * 5, "chosen_ids": [1], "rejected_ids": [1] * 3}, 8),
        ({"chosen_ids": [1], "rejected_ids": [1] * 3, "margin": 0.5}, 3),
        ({"prompt_ids": [1] * 5, "completion_ids": [1] * 2, "label": True}, 7),
        ({"text": "abc"}, None),
    ],
)
def test_the_length_of_a_row(row: dict[str, Any], length: int | None) -> None:
    from datasets import Dataset

    from unsloth_accel.adapters.token_balance import lengths_of_rows

    rows = Dataset.from_list([row] * 2)
    assert lengths_of_rows(rows) == (None if length is None else [length] * 2)
    assert lengths_of_rows(rows.to_iterable_dataset()) is None, "it may have no end"


def test_the_order_of_every_epoch_is_known() -> None:
    from torch.utils.data import RandomSampler, SequentialSampler

    from unsloth_accel.adapters.token_balance import drawn_in

    seeded = Order(5)
    seeded.set_epoch(1)
    found = list(drawn_in(range(3), seeded, seeded))
    assert seeded.epoch == 1
    assert len({tuple(order) for order in found}) == 3
    rows, random = SequentialSampler(range(3)), RandomSampler(range(3))
    assert list(drawn_in(range(2), rows, rows)) == [[0, 1, 2], [0, 1, 2]]
    assert list(drawn_in(range(2), random, random)) == []


def _two_ranks(lengths: list[int]) -> Any:
    """Return the first of two ranks' trainer; each has two of the rows, of so many tokens, in a step."""
    from accelerate.data_loader import DataLoaderShard
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    rows = Dataset.from_list([{"input_ids": [1] * length} for length in lengths])
    plain = DataLoaderShard(rows, sampler=SequentialSampler(rows), batch_size=2)
    sizes = {"train_batch_size": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "n_gpu": 1}
    epochs = {"max_steps": -1, "num_train_epochs": 1, "dataloader_drop_last": False}
    return SimpleNamespace(
        args=SimpleNamespace(**sizes, **epochs, average_tokens_across_devices=True, include_num_input_tokens_seen="no"),
        accelerator=SimpleNamespace(num_processes=2, process_index=0, split_batches=False),
        data_collator=SimpleNamespace(padding_free=True),
        get_train_dataloader=lambda: plain,
    )


@pytest.mark.parametrize(
    ("lengths", "changed", "gains"),
    [
        ([7] * 16, False, False),
        ([7, 6, 7, 7] * 4, False, False),
        ([7] * 15, True, False),  # by number accelerate would repeat a row
        ([90, 3, 80, 2] * 4, True, True),
    ],
)
def test_where_nothing_is_gained_rows_are_shared_out_by_number(
    lengths: list[int], changed: bool, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unsloth_accel.adapters import token_balance

    monkeypatch.setattr(token_balance, "parts_add_up", lambda trainer: True)
    trainer = _two_ranks(lengths)
    before = trainer.get_train_dataloader
    done = token_balance.balance_tokens(trainer)
    assert isinstance(done, token_balance.Balance)
    assert done.gains is gains
    assert (trainer.get_train_dataloader is not before) is changed


def test_the_gain_is_told_of_steps_that_are_spread_over_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of millions of rows would take minutes; of these six it is the first and the fourth."""
    from unsloth_accel.adapters import token_balance

    monkeypatch.setattr(token_balance, "parts_add_up", lambda trainer: True)
    monkeypatch.setattr(token_balance, "MOST_STEPS", 2)
    done = token_balance.balance_tokens(_two_ranks([9, 9, 1, 1] + 5 * [5, 5, 5, 5]))
    assert isinstance(done, token_balance.Balance)
    assert done.speedup == pytest.approx((18 + 10) / (10 + 10))


def test_no_speed_is_said_that_is_none() -> None:
    from unsloth_accel.adapters.token_balance import Balance

    shares = {"waiting": 0.1, "waiting_before": 0.1, "padding": 0.0, "padding_before": 0.0, "padded": False}
    slower = Balance(accumulation=1, planned_accumulation=2, speedup=0.99, **shares)
    assert str(slower) == "rows shared out by tokens: 1 micro-batch per step instead of 2, as they fit"
    assert "1.20 × as fast" in str(Balance(accumulation=1, planned_accumulation=2, speedup=1.2, **shares))
