"""Reporters, the Trainer's own callbacks for TensorBoard, Weights & Biases and others: none of them ends a training.

Once it runs, a reporter whose disk is full or whose server is gone costs what it would have told, and nothing else.
What it raises as the training begins is raised, but for what a disk does: a missing login or package is better known
before hours have passed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import first_line

if TYPE_CHECKING:
    from transformers import Trainer


def spare_training(trainer: Trainer) -> None:
    """Let errors of `trainer`'s reporters be told, once each, and not raised."""
    from transformers.integrations import integration_utils

    kinds = tuple(kind for kind in integration_utils.INTEGRATION_TO_CALLBACK.values() if isinstance(kind, type))
    for reporter in trainer.callback_handler.callbacks:
        if isinstance(reporter, kinds):
            told: set[str] = set()
            for name in (name for name in dir(reporter) if name.startswith("on_")):
                caught = OSError if name == "on_train_begin" else Exception
                setattr(reporter, name, _spared(getattr(reporter, name), type(reporter).__name__, caught, told))


def _spared(event: Callable[..., Any], reporter: str, caught: type[Exception], told: set[str]) -> Callable[..., Any]:
    @functools.wraps(event)
    def spared(*args: Any, **kwargs: Any) -> Any:
        try:
            return event(*args, **kwargs)
        except caught as error:
            said = f"{reporter} can't report: {type(error).__name__}: {first_line(error)}"
            if said not in told:
                told.add(said)
                print(f"unsloth_accel: warning: {said}; training goes on.", file=sys.stderr, flush=True)
            return None

    return spared
