"""The order of rows in an epoch follows the seed and the epoch alone, so that a run can go on in the middle of one.

Mends, in transformers 5.17 with accelerate 1.15:
- `train_sampling_strategy=group_by_length` draws its order from the process's own random numbers: ranks whose numbers
  differ (dropout) train some rows twice and others never, and a run that goes on in mid-epoch has another order.
- A run of several processes with `batch_rebalance` that goes on in a later epoch gets the first epoch's order, since
  accelerate doesn't hand the epoch through its wrappers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch.utils.data import Sampler

from ..capabilities.probe import available
from .hook_types import Arguments, Control, State, TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer


class SeededGroups(Sampler[int]):
    """Rows in groups of about one length, as `groups` (transformers' LengthGroupedSampler) makes them, in an order of
    its own for each epoch."""

    def __init__(self, groups: Any, seed: int) -> None:
        self.groups = groups
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.groups.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class EpochOfSampler(TrainerCallback):
    """Tells the samplers which epoch begins: all, since a loader may be made beside the one that is trained from."""

    def __init__(self) -> None:
        self.samplers: WeakSet[Any] = WeakSet()

    def tell(self, sampler: Any) -> Any:
        """Tell `sampler` from now on; returns it."""
        if hasattr(sampler, "set_epoch"):
            self.samplers.add(sampler)
        return sampler

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        for sampler in self.samplers:
            sampler.set_epoch(int(state.epoch or 0))  # in mid-epoch 1 it is 1.4


def order_by_epoch(trainer: Trainer) -> None:
    """Have `trainer` order its rows by seed and epoch; once is enough."""
    if not available("rows in an order that is known"):
        return
    from transformers.trainer_pt_utils import LengthGroupedSampler

    callback, make = EpochOfSampler(), trainer._get_train_sampler
    seed = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed

    def sampler(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        return callback.tell(SeededGroups(made, seed) if isinstance(made, LengthGroupedSampler) else made)

    trainer._get_train_sampler = sampler
    trainer.add_callback(callback)
