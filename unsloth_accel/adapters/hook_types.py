"""What transformers hands to the hooks of a callback, by names so short that a hook's signature is one line."""

from __future__ import annotations

from typing import Any, TypeAlias

from transformers import TrainerCallback as TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

Json: TypeAlias = dict[str, Any]
"""The figures of a log, which JSON can hold."""

__all__ = ["Arguments", "Control", "Json", "State", "TrainerCallback"]
