"""Trainer callbacks, each usable alone in any Hugging Face Trainer; loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guard import Guard as Guard
    from .memory_watch import MemoryWatch as MemoryWatch
    from .progress import Progress as Progress
    from .step_log import StepLog as StepLog

_HOME = {"Guard": "guard", "MemoryWatch": "memory_watch", "Progress": "progress", "StepLog": "step_log"}
__all__ = ["Guard", "MemoryWatch", "Progress", "StepLog"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
