"""The held-out loss of a Trainer: a mean over all that is predicted, each row once, on any number of processes.

Mends, in transformers 5.17 with accelerate 1.15 (TRL's and Unsloth's trainers have it from there):
- `evaluation_loop` takes the mean of its batches' losses, so that a loss over tokens depends on which rows met in a
  batch: on the processes and on per_device_eval_batch_size.
- `prediction_step` counts what all ranks predict and `compute_loss` multiplies by the processes, as training needs it.
  A loss that is a mean already, such as that of a classification head, comes out as many times itself as there are
  processes.
- TRL's trainers take the mean over batches, too, of what they note beside the loss, such as the share of pairs in which
  the chosen answer wins.
- Accelerate repeats rows to give every rank as many in the last batch, and they count in that batch's mean. Under
  dataloader_drop_last held-out rows are left out.

Here each rank's loss is that of its own rows, for `average_tokens_across_devices` is off while it evaluates; losses are
weighted by what was predicted (labels that count, or rows where there are none) and added up over all ranks, as TRL's
figures are; and the last rows are shared out, not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Sampler, SequentialSampler

from ..capabilities.probe import available
from .token_balance import with_batches

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments


def weigh_held_out(trainer: Trainer) -> None:
    """Have `trainer.evaluate` and `trainer.predict` give the loss of all rows together; once is enough."""
    if available("held-out loss over all rows"):
        _HeldOutLoss(trainer)


class RowsOnce(Sampler[list[int]]):
    """One rank's batches of the rows in `sampler`'s order, up to `most` a batch, each row on one rank.

    All ranks have as many rows in a batch, for losses gather what they compute of each. Where the last rows can't be
    divided so, they are a batch of one row a rank, and a rank that gets none computes the first of all; `rows` tells.
    """

    def __init__(self, sampler: Any, *, most: int, ranks: int, rank: int) -> None:
        self.sampler = sampler
        self.rank = rank
        whole, left = divmod(len(sampler), most * ranks)
        each, self._last = divmod(left, ranks)
        self.sizes = [most] * whole + [each] * bool(each) + [1] * bool(self._last)
        """Rows of a rank in each batch, with one that is computed for nothing."""
        # Accelerate's names, from which its loaders know how many rows of the last batch count.
        self.num_processes, self.batch_size = ranks, 1

    def __iter__(self) -> Iterator[list[int]]:
        order, start = list(self.sampler), 0
        for size in self.sizes:
            first = start + self.rank * size
            yield order[first : first + size] or order[:1]
            start += size * self.num_processes

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, batch: int) -> int:
        """Return the number of this rank's rows in a batch, counted from 0."""
        none = batch == len(self) - 1 and self._last and self.rank >= self._last
        return 0 if none else self.sizes[batch]


class _HeldOutLoss:
    """Sums over one evaluation of a Trainer at a time, in place of whose methods it is called."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._batches: RowsOnce | None = None
        self._step = 0
        self._repeats = 0
        """How many rows the loss that is gathered next stands for; 0 where none is, or what was gathered is right."""
        self._sums: list[torch.Tensor] = []
        """Weighted loss and weight of each of this rank's batches that has a loss."""
        self._plain_loop, self._plain_step = trainer.evaluation_loop, trainer.prediction_step
        trainer.evaluation_loop = self._evaluation_loop
        trainer.prediction_step = self._prediction_step

    def _evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        self._batches, self._step, self._sums = self._each_row_once(dataloader), 0, []
        if self._batches is not None:
            dataloader = with_batches(dataloader, self._batches)
            self._trainer.gather_function = self._loss_of_each_row(self._trainer.gather_function)
        try:
            with _each_rank_for_itself(self._trainer.args):
                found = self._plain_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        finally:
            self._batches = None  # a user's own call of prediction_step has others
        if self._sums:
            total, weight = self._trainer.accelerator.reduce(sum(self._sums), "sum").tolist()
            self._weigh_figures()
            found.metrics[f"{metric_key_prefix}_loss"] = total / weight if weight else float("nan")
        return found

    def _weigh_figures(self) -> None:
        """Put the weighted mean in the place of what a trainer of TRL's noted of each batch, before it takes the mean.
        Its ranks have as many batches, for they met in each."""
        import torch

        kept = (getattr(self._trainer, name, {}).get("eval", {}) for name in ("_metrics", "_stored_metrics"))
        noted: dict[str, list[float]] = next(filter(None, kept), {})  # the second is ORPO's
        if not noted or not available("held-out figures over all rows"):
            return
        weights = self._trainer.accelerator.reduce(torch.stack([weight for _, weight in self._sums]), "sum").tolist()
        for name, values in noted.items():
            if len(values) == len(weights) and sum(weights):
                noted[name] = [sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)]

    def _loss_of_each_row(self, gather: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`gather`, given the loss of a batch as often as it has rows: `include_for_metrics` gives it to a user's
        metrics beside the predictions. The Trainer repeats it for a full batch, and gathers it first."""

        def gathered(data: Any) -> Any:
            repeats, self._repeats = self._repeats, 0
            return gather(data[:repeats] if repeats else data)

        return gathered

    def _prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        import torch

        weight = self._weight(inputs)  # before: the loss may take the labels out
        found = self._plain_step(model, inputs, *rest, **named)
        self._step += 1
        if found[0] is not None:
            self._repeats = 0 if self._batches is None else self._batches.sizes[self._step - 1]
            loss = found[0].detach().mean().double()
            weight = torch.as_tensor(weight, device=loss.device).double()
            # A batch in which nothing is predicted has a mean of nothing.
            self._sums.append(torch.stack([torch.where(weight > 0, loss * weight, 0.0), weight]))
        return found

    def _weight(self, inputs: Any) -> Any:
        """What the loss of a batch is the mean of: the labels that count, or rows."""
        import torch
        from transformers.trainer_pt_utils import find_batch_size

        rows = None if self._batches is None else self._batches.rows(self._step)
        named = inputs if isinstance(inputs, Mapping) else {}
        labels, shifted = named.get("labels"), named.get("shift_labels")
        if rows == 0:
            return 0
        if isinstance(shifted, torch.Tensor):
            return shifted.ne(-100).sum()
        if isinstance(labels, torch.Tensor):
            return (labels[..., 1:] if self._trainer._loss_shifts_labels else labels).ne(-100).sum()
        return rows or find_batch_size(inputs) or len(inputs)

    def _each_row_once(self, loader: DataLoader[Any]) -> RowsOnce | None:
        """Batches that hold each row once; None where those of `loader` do, or its rows can't be dealt by us."""
        from accelerate.data_loader import DataLoaderShard
        from transformers.trainer_pt_utils import LengthGroupedSampler

        accelerator = self._trainer.accelerator
        batches: Any = loader.batch_sampler if isinstance(loader, DataLoaderShard) else None
        batches = getattr(batches, "batch_sampler", batches)  # accelerate's deals those out that are here
        sampler, most = getattr(batches, "sampler", None), getattr(batches, "batch_size", None)
        if not most or not isinstance(
            sampler, SequentialSampler | LengthGroupedSampler
        ):  # others mean more by an order
            return None
        ranks = accelerator.num_processes
        once = len(sampler) % (most * ranks) == 0 or (ranks == 1 and not batches.drop_last)
        if once or accelerator.split_batches:
            return None
        return RowsOnce(sampler, most=most, ranks=ranks, rank=accelerator.process_index)


@contextmanager
def _each_rank_for_itself(args: TrainingArguments) -> Iterator[None]:
    """Inside, a Trainer with `args` takes the mean loss of a rank's own rows, and doesn't multiply it."""
    before = args.average_tokens_across_devices
    args.average_tokens_across_devices = False
    try:
        yield
    finally:
        args.average_tokens_across_devices = before
