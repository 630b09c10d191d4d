"""Callbacks for any Hugging Face Trainer, each usable alone; loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .divergence import Divergence as Divergence
    from .early_stopping import EarlyStopping as EarlyStopping
    from .guard import Guard as Guard
    from .memory_figures import Memory as Memory
    from .memory_watch import MemoryWatch as MemoryWatch
    from .observed import observe as observe
    from .order import figures_first as figures_first
    from .phases import phase as phase
    from .progress import Progress as Progress
    from .pulse import Pulse as Pulse
    from .rank_log import RankLog as RankLog
    from .rank_sync import RankSync as RankSync
    from .rows_per_step import RowsPerStep as RowsPerStep
    from .run_log import RunLog as RunLog
    from .step_agreement import StepAgreement as StepAgreement
    from .step_log import StepLog as StepLog
    from .stragglers import Stragglers as Stragglers
    from .throughput import Throughput as Throughput

_HOME = {
    "Divergence": "divergence",
    "EarlyStopping": "early_stopping",
    "Guard": "guard",
    "Memory": "memory_figures",
    "MemoryWatch": "memory_watch",
    "Progress": "progress",
    "Pulse": "pulse",
    "RankLog": "rank_log",
    "RankSync": "rank_sync",
    "RowsPerStep": "rows_per_step",
    "RunLog": "run_log",
    "StepAgreement": "step_agreement",
    "StepLog": "step_log",
    "Stragglers": "stragglers",
    "Throughput": "throughput",
    "figures_first": "order",
    "observe": "observed",
    "phase": "phases",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
