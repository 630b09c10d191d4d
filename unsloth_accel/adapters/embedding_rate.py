"""A learning rate of their own for embeddings and head that are trained whole, as Unsloth's trainer gives it."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING

from ..capabilities.probe import available

if TYPE_CHECKING:
    from transformers import Trainer


def embeddings_learn_at(trainer: Trainer, rate: float) -> None:
    """Let `trainer` make an optimizer whose group of embed_tokens and lm_head learns at `rate`.

    UnslothTrainer's own method makes it, of any trainer: it is TRL's SFTTrainer with this one method
    (unsloth/trainer.py, `UnslothTrainer.create_optimizer`), and other methods have other trainers.
    """
    available("a learning rate for embeddings")
    from unsloth import UnslothTrainer

    trainer.args.embedding_learning_rate = rate
    trainer.create_optimizer = MethodType(UnslothTrainer.create_optimizer, trainer)
