"""Token-balanced batches in a Hugging Face Trainer: each step's rows, shared out by tokens instead of by number.

Without it every rank gets the same number of rows in the order of the sampler, so that in each step all ranks wait for
the one with the longest, and rows of one step that would fit into one micro-batch are spread over several.

The rows of every step, their order over the epoch, shuffling, resuming in the middle of an epoch and the loss stay the
Trainer's own: its sampler is asked for the order, its prepared loader is rebuilt with another batch sampler (as
accelerate's `skip_first_batches` does), and the Trainer weighs the loss by the tokens of all ranks. So one process and
several still train alike. Only the last step of an epoch differs, for the better: accelerate repeats rows in it to give
every rank as many, here each row is in the epoch once, and a rank without any gets a row without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from ..capabilities.probe import available
from ..data.balance import by_number, costs_of, share
from ..errors import counted
from .micro_batches import parts_add_up
from .real_batch import set_batch
from .token_count import count_late

if TYPE_CHECKING:
    from transformers import Trainer

KEPT = (
    *("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    *("prefetch_factor", "persistent_workers", "pin_memory_device"),
)
"""Arguments of torch's DataLoader, beside data set, sampler and collate function, that the Trainer's loader keeps."""


_Drawn = TypeVar("_Drawn")
ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")
"""Columns of TRL's rows of preferences, each of which is computed behind the row's `prompt_ids`, if it has some."""
LEAST_GAIN = 1.01
"""Speedup from which on rows are shared out by tokens where nothing else speaks for it."""

MOST_STEPS = 2000
"""Steps of a run whose rows are shared out beforehand, to tell what that gains: half a millisecond each."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What balancing does to a run, from the lengths and the order of all its rows."""

    padded: bool
    """Whether rows are padded to the longest of their micro-batch, or laid end to end."""
    accumulation: int
    """Micro-batches per rank and step."""
    planned_accumulation: int
    speedup: float
    """How much faster steps are than with rows by number, if time goes with the tokens of the slowest rank."""
    waiting: float
    """Share of that time for which the average rank waits."""
    waiting_before: float
    padding: float
    """Computed tokens for each real one, less one."""
    padding_before: float

    @property
    def gains(self) -> bool:
        """Whether it is worth a word: a hundredth of the time, or fewer micro-batches."""
        return self.speedup >= LEAST_GAIN or self.accumulation < self.planned_accumulation

    def __str__(self) -> str:
        parts = (
            f"{counted(self.accumulation, 'micro-batch')} per step instead of {self.planned_accumulation}, as they fit"
        )
        if self.speedup < LEAST_GAIN:
            return f"rows shared out by tokens: {parts}"
        text = (
            f"rows shared out by tokens: steps {self.speedup:.2f} × as fast as by number, if time goes with tokens "
            f"(ranks wait {self.waiting:.1%} instead of {self.waiting_before:.1%} of it"
        )
        if self.padded:
            text += f", padding {self.padding:.0%} instead of {self.padding_before:.0%}"
        if self.accumulation != self.planned_accumulation:
            text += f", {parts}"
        return f"{text})"


def balance_tokens(trainer: Trainer, most_tokens: int | None = None) -> Balance | str:
    """Have `trainer` share out the rows of each step by tokens; returns what that does, or why it can't be done.

    Call it once, before `trainer.train()`, on every rank. Where all steps' rows fit into fewer micro-batches than were
    asked for, none of more than `most_tokens` tokens, `trainer.args` gets fewer, larger ones; the rows per step stay.
    By default that is what the longest row takes in a full per-device batch.

    Where nothing is gained (`Balance.gains`) and no epoch ends in a smaller step, the trainer stays as it is.
    Left alone, with the reason: rows that are streamed or not tokenised yet, a sampler that gives rows another meaning
    than one row of a step (GRPO's groups, `train_sampling_strategy`), and a model that can't weigh its loss by tokens.
    """
    from accelerate.data_loader import DataLoaderShard

    args = trainer.args
    loader = trainer.get_train_dataloader()
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    if isinstance(loader.dataset, IterableDataset):
        return "they are streamed, so their lengths are not known beforehand"
    if not isinstance(sampler, RandomSampler | SequentialSampler):
        return "their sampler gives the order a meaning of its own"
    if not isinstance(loader, DataLoaderShard) or trainer.accelerator.split_batches:
        return "accelerate is set to divide batches itself (dispatch_batches or split_batches)"
    if not parts_add_up(trainer):
        return "the loss of a micro-batch is a mean over its rows, and not weighted by tokens over all ranks"
    if trainer.accelerator.num_processes > 1 and not args.average_tokens_across_devices:
        return "training.average_tokens_across_devices is false, so each rank weighs its rows by its own tokens alone"
    lengths = lengths_of_rows(loader.dataset)
    if lengths is None:
        return "the rows are not tokenised yet, so their lengths are not known"
    if not (available("rows shared out by tokens") and available("a batch that is set anew")):
        return "the installed packages lack a name that it needs"
    ranks = trainer.accelerator.num_processes
    padded = not getattr(trainer.data_collator, "padding_free", False)
    planned = args.gradient_accumulation_steps
    rows = args.train_batch_size * planned * ranks
    each = len(lengths) // rows if args.dataloader_drop_last else ceil(len(lengths) / rows)
    if not each:
        return "they are fewer than a step, and a smaller one is dropped"
    epochs = ceil(args.max_steps / each if args.max_steps > 0 else args.num_train_epochs)
    known = list(drawn_in(range(epochs), sampler, sampler))
    # Where the order isn't known beforehand, any other shows about as much, and promises nothing.
    orders = known or [list(range(len(lengths)))]
    steps = [[lengths[row] for row in step] for order in orders for step in islice(_steps(order, rows), each)]
    most = most_tokens or args.train_batch_size * max(lengths)
    accumulation = _fewest(steps, rows, ranks, planned, most, padded) if known else planned
    shown = steps[:: ceil(len(steps) / MOST_STEPS)]
    before = _Spent.of(shown, padded, lambda step: by_number(len(step), ranks, planned))
    after = _Spent.of(shown, padded, lambda step: share(step, ranks, accumulation, padded=padded))
    done = Balance(
        padded=padded,
        accumulation=accumulation,
        planned_accumulation=planned,
        speedup=before.slowest / after.slowest,
        waiting=1 - after.mean / after.slowest,
        waiting_before=1 - before.mean / before.slowest,
        padding=after.mean / after.real - 1,
        padding_before=before.mean / before.real - 1,
    )
    if not done.gains and (args.dataloader_drop_last or len(lengths) % rows == 0):
        return done  # by number no row is repeated either
    set_batch(trainer, rows // (ranks * accumulation * max(1, args.n_gpu)), accumulation)

    plain = trainer.get_train_dataloader

    def balanced() -> DataLoader[Any]:
        prepared: Any = plain()
        batches = TokenBatches(
            prepared.get_sampler(),
            lengths,
            rows=rows,
            ranks=ranks,
            rank=trainer.accelerator.process_index,
            accumulation=accumulation,
            padded=padded,
            drop_last=args.dataloader_drop_last,
        )
        masking = {"dataset": _Rows(prepared.dataset), "collate_fn": _Collate(prepared.collate_fn)}
        return with_batches(prepared, batches, **masking)

    trainer.get_train_dataloader = balanced
    if args.include_num_input_tokens_seen == "non_padding":
        count_late(trainer, learned=True)
    return done


@dataclass(eq=False, repr=False)
class TokenBatches(Sampler[list[int]]):
    """One rank's micro-batches: lists of row numbers, `accumulation` for every `rows` rows of `sampler`'s order.

    The order must be the same on every rank. A micro-batch of a rank that has no row left in the last step of an epoch
    holds the shortest row of that step, as -1 - its number: `MaskedRow` makes it count for nothing.
    """

    sampler: Any
    """Accelerate's loaders reach through this name to set the epoch."""
    lengths: Sequence[int]
    _: KW_ONLY
    rows: int
    ranks: int
    rank: int
    accumulation: int
    padded: bool
    drop_last: bool = False

    def __post_init__(self) -> None:
        # Accelerate's names, from which its loaders know their total batch size.
        self.num_processes = self.ranks
        self.batch_size = self.rows // (self.ranks * self.accumulation)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.of_steps():
            yield from self.own(step)

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        steps, left = divmod(len(self.sampler), self.rows)
        last = self._micro_batches(left) if left and not self.drop_last else 0
        return steps * self.accumulation + last

    def of_steps(self) -> BatchSampler:
        """Return what draws the rows of each step, of all ranks."""
        return BatchSampler(self.sampler, self.rows, self.drop_last)

    def own(self, step: list[int]) -> list[list[int]]:
        """Return this rank's micro-batches of the rows of a step."""
        lengths = [self.lengths[row] for row in step]
        shares = share(lengths, self.ranks, self._micro_batches(len(step)), padded=self.padded)
        return [
            [step[row] for row in group] or [-1 - min(step, key=lambda row: (self.lengths[row], row))]
            for group in shares[self.rank]
        ]

    def _micro_batches(self, rows: int) -> int:
        """Return the micro-batches per rank in a step of `rows` rows: no more than give every rank a row in each."""
        return min(self.accumulation, ceil(rows / self.ranks))


class MaskedRow(dict[str, Any]):
    """A row that is computed, for the ranks must run in step, and not learned from."""


class _Rows(Dataset[Any]):
    """`rows` with negative numbers for rows that are not to be learned from."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row] if row >= 0 else MaskedRow(self.rows[-1 - row])

    def __getitems__(self, rows: list[int]) -> list[Any]:
        several: Callable[[list[int]], list[Any]] | None = getattr(self.rows, "__getitems__", None)
        return [self[row] for row in rows] if several is None or rows[0] < 0 else several(rows)


class _Collate:
    """`collate`, without labels for a micro-batch of a `MaskedRow`."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        if isinstance(rows[0], MaskedRow):
            for name in {"labels", "shift_labels"} & batch.keys():
                batch[name].fill_(-100)
        return batch


def with_batches(prepared: Any, batches: Sampler[list[int]], **others: Any) -> DataLoader[Any]:
    """The loader that accelerate prepared, a `DataLoaderShard`, with other batches and `others` of its arguments."""
    from accelerate.data_loader import DataLoaderShard

    kept = {
        "dataset": prepared.dataset,
        "collate_fn": prepared.collate_fn,
        "device": prepared.device,
        "rng_types": prepared.rng_types,
        "synchronized_generator": prepared.synchronized_generator,
        "_non_blocking": prepared._non_blocking,
        **{name: getattr(prepared, name) for name in KEPT},
    }
    return DataLoaderShard(**kept | others, batch_sampler=batches)


def lengths_of_rows(dataset: Any) -> list[int] | None:
    """Tokens of each row, or None where rows are streamed, or have none yet.

    A row of preferences is as long as its prompt with the longest of its answers.
    """
    names = set(getattr(dataset, "column_names", None) or ()) if hasattr(dataset, "__len__") else set()
    whole = names & {"input_ids"} or names & {"prompt_ids"}
    answers = set() if "input_ids" in names else names & set(ANSWERS)
    if not whole | answers:
        return None
    import pyarrow.compute as pc

    found: list[int] = []
    for table in dataset.select_columns([*whole, *answers]).with_format("arrow").iter(10_000):
        lengths = [pc.list_value_length(table[name]) for name in whole]
        if answers:
            lengths.append(pc.max_element_wise(*[pc.list_value_length(table[name]) for name in answers]))
        found += (pc.add(*lengths) if len(lengths) > 1 else lengths[0]).to_pylist()
    return found


def drawn_in(epochs: Iterable[int], sampler: Any, draws: Iterable[_Drawn]) -> Iterator[list[_Drawn]]:
    """What `draws`, `sampler` itself or batches of it, give in each epoch; nothing where the sampler doesn't know the
    order beforehand. It is left as it was."""
    if isinstance(sampler, SequentialSampler):
        yield from (list(draws) for _ in epochs)
    elif hasattr(sampler, "set_epoch"):
        before, generator = sampler.epoch, getattr(sampler, "generator", None)
        state = None if generator is None else generator.get_state()
        for epoch in epochs:
            sampler.set_epoch(epoch)
            yield list(draws)
        sampler.set_epoch(before)
        if generator is not None:
            generator.set_state(state)


def _steps(order: Iterable[int], rows: int) -> Iterator[list[int]]:
    """`order` in pieces of `rows`, the last one perhaps shorter."""
    rest = iter(order)
    while step := list(islice(rest, rows)):
        yield step


def _fewest(steps: list[list[int]], rows: int, ranks: int, planned: int, most: int, padded: bool) -> int:
    """The smallest number of micro-batches, up to `planned`, of which none costs more than `most` tokens.

    `steps` are the lengths of the rows of every step of the run.
    """
    for accumulation in range(1, planned):
        if rows % (ranks * accumulation) == 0 and all(
            max(map(max, costs_of(step, share(step, ranks, accumulation, padded=padded), padded=padded))) <= most
            for step in steps
        ):
            return accumulation
    return planned


@dataclass(frozen=True)
class _Spent:
    """Tokens over all steps: of the slowest rank of each, of the average one, and those of them that are no padding."""

    slowest: int
    mean: float
    real: float

    @classmethod
    def of(cls, steps: list[list[int]], padded: bool, shares: Callable[[list[int]], list[list[list[int]]]]) -> _Spent:
        ranks = [[sum(own) for own in costs_of(step, shares(step), padded=padded)] for step in steps]
        real = sum(sum(step) / len(own) for step, own in zip(steps, ranks, strict=True))
        return cls(sum(map(max, ranks)), sum(sum(own) / len(own) for own in ranks), real)
