"""adapt: make a Trainer that the user built safe to run in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ..callbacks.guard import Guard
from . import environment, import_order
from .ddp import wrap_after_evaluation
from .generation import gather_in_generate
from .saving import let_numbered_cpus_load

if TYPE_CHECKING:
    from transformers import Trainer

AnyTrainer = TypeVar("AnyTrainer", bound="Trainer")


def adapt(trainer: AnyTrainer) -> AnyTrainer:
    """Make `trainer` safe to evaluate before it trains and to resume, guard it, and return it; once is enough.

    Without it `trainer.evaluate()` before `trainer.train()` turns DDP off (`adapters.ddp`). The guard stops the run,
    with the reason, when its world is not the one that was launched or its ranks are not synchronised
    (`unsloth_accel.callbacks.Guard`). Under accelerate's FSDP2 its model can generate (`adapters.generation`).

    Raises `ImportOrderError` where unsloth was imported too late for it (`adapters.import_order`).
    """
    if environment.promise() is not None:  # in a single process Unsloth's own warning will do
        import_order.check_trainer(trainer)
        import_order.check_accelerator(trainer.accelerator)
    if not any(isinstance(callback, Guard) for callback in trainer.callback_handler.callbacks):
        wrap_after_evaluation(trainer.accelerator)
        let_numbered_cpus_load()
        gather_in_generate(trainer.accelerator, trainer.model)
        trainer.add_callback(Guard())
    return trainer
