"""The reference of a preference trainer, where the model has a LoRA adapter: the model as training begins.

TRL 1.15 gives a PEFT model a frozen copy of its adapter, named `ref`, for DPO and KTO. Of a new adapter, which changes
nothing yet, that is the base model: the copy takes memory for nothing, and goes; TRL then turns the adapter off. Of an
adapter that training goes on from it is needed.

Mends, in transformers 5.17: a checkpoint with a copy has it in a directory of its own, and resuming loads what lies in
such directories (`adapter_subdirs`) and nothing else: the trained adapter would begin anew, silently. Here the copy is
not saved; a run that goes on makes it anew, as it did before.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ..capabilities.probe import available

if TYPE_CHECKING:
    from transformers import Trainer

COPY = "ref"
"""TRL's name of it."""


def settle_reference(trainer: Trainer, *, is_new: bool) -> None:
    """Keep the copy that `trainer` made out of what is saved, or, where the adapter `is_new`, remove it."""
    model = trainer.model
    if COPY not in getattr(model, "peft_config", {}):
        return
    if is_new:
        model.delete_adapter(COPY)
    elif available("a reference that isn't saved"):
        saved = [model.active_adapter]
        model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=saved)
