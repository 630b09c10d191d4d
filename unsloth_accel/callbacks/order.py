"""Figures first: our callbacks add their figures to a log before TensorBoard, W&B and the others report it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

    from ..adapters.hook_types import State


def figures_first(trainer: Trainer) -> None:
    """Move the callbacks that add figures to the front, in their order; call it once, when all are added.

    The Trainer puts its integrations before the callbacks that it is given, and each gets the same dictionary in turn:
    what is added behind them is shown on the console but never reported. `unsloth_accel.adapt` calls this.
    """
    handler = trainer.callback_handler
    handler.callbacks.sort(key=lambda callback: not getattr(callback, "adds_figures", False))


def add_figures(logs: dict[str, Any], state: State, figures: dict[str, float]) -> None:
    """Add `figures` to the log that is being reported, and to its copy in `state.log_history` (trainer_state.json)."""
    logs.update(figures)
    if state.log_history and state.log_history[-1].get("step") == state.global_step:
        state.log_history[-1].update(figures)
