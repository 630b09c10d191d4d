"""Types of what transformers passes to a callback's hooks, by names so short that a hook's signature is one
line; and of a Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from transformers import TrainerCallback as TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

if TYPE_CHECKING:
    from transformers import Trainer

Json: TypeAlias = dict[str, Any]
"""Figures of a log, which JSON can hold."""
AnyTrainer = TypeVar("AnyTrainer", bound="Trainer")
"""A Trainer, which the function that takes it returns."""

__all__ = ["AnyTrainer", "Arguments", "Control", "Json", "State", "TrainerCallback"]
