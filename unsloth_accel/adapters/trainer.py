"""adapt: make a Trainer that the user built safe to run in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..callbacks.every_gradient import EveryGradient
from ..callbacks.guard import Guard
from .ddp import wrap_after_evaluation
from .ddp_settings import choose_settings
from .saving import let_numbered_cpus_load

if TYPE_CHECKING:
    from transformers import Trainer

AnyTrainer = TypeVar("AnyTrainer", bound="Trainer")


def adapt(trainer: AnyTrainer) -> AnyTrainer:
    """Make `trainer` safe to evaluate before it trains and to resume, guard it, and return it; once is enough.

    Without it `trainer.evaluate()` before `trainer.train()` turns DDP off (`adapters.ddp`), and DDP's settings don't
    fit the model (`adapters.ddp_settings`). The guard stops the run, with the reason, when its world is not the one
    that was launched or its ranks are not synchronised (`unsloth_accel.callbacks.Guard`).
    """
    if not any(isinstance(callback, Guard) for callback in trainer.callback_handler.callbacks):
        wrap_after_evaluation(trainer.accelerator)
        choose_settings(trainer.accelerator, trainer.args)
        let_numbered_cpus_load()
        trainer.add_callback(EveryGradient(trainer.accelerator))
        trainer.add_callback(Guard())
    return trainer
