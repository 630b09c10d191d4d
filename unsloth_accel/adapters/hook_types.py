"""Types of what transformers passes to a callback's hooks, by names so short that a hook's signature is one line."""

from __future__ import annotations

from typing import Any, TypeAlias

from transformers import TrainerCallback as TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

Json: TypeAlias = dict[str, Any]
"""Figures of a log, which JSON can hold."""

__all__ = ["Arguments", "Control", "Json", "State", "TrainerCallback"]
