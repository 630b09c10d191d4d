"""Early stopping: when it stops, what it says, and what a resumed run keeps of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.callbacks import EarlyStopping

ARGS: Any = SimpleNamespace(
    load_best_model_at_end=True, metric_for_best_model="eval_loss", eval_strategy="steps", greater_is_better=False
)


def trained(losses: list[float], callback: EarlyStopping, state: Any = None, most: int = 9) -> Any:
    """Evaluate to `losses`, a step each, as the Trainer does, until the callback stops it; returns the state."""
    from transformers import TrainerControl, TrainerState

    state = state or TrainerState(stateful_callbacks=[callback])
    state.max_steps = most
    control = TrainerControl()
    callback.on_train_begin(ARGS, state, control)
    for loss in losses:
        state.global_step += 1
        callback.on_evaluate(ARGS, state, control, {"eval_loss": loss})
        state.best_metric = min(loss, state.best_metric or loss)
        if control.should_training_stop:
            break
    state.stateful_callbacks["EarlyStopping"] = callback.state()  # as the Trainer saves it
    callback.on_train_end(ARGS, state, control)
    callback.on_evaluate(ARGS, state, TrainerControl(), {"eval_loss": 9.0})  # of the trained model
    return state


def test_it_stops_after_its_patience_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    callback = EarlyStopping(2, 0.1)
    assert trained([3, 2, 1.95, 1, 0.95, 0.95, 0.1], callback).global_step == 6
    assert callback.stopped == (
        "stopped early, after step 6 of 9: eval_loss, now 0.9500, was not better than 0.9500 by more than 0.1 at 2 "
        "evaluations in a row"
    )
    assert capsys.readouterr().out == f"{callback.stopped}\n"
    callback = EarlyStopping(1)
    assert trained([3, 2, 2], callback, most=3).global_step == 3
    assert callback.stopped == "", "the last step is no early one"


def test_a_resumed_run_counts_on() -> None:
    """Also from a run that didn't stop early, whose checkpoint knows nothing of it."""
    first = trained([3, 2, 2.5], EarlyStopping(2))
    callback = EarlyStopping(2)
    assert trained([2.5, 2.5], callback, first).global_step == 4
    assert callback.stopped
    from transformers import TrainerState

    without = TrainerState(global_step=3, best_metric=2.0)
    assert trained([2.5, 2.5, 2.5], EarlyStopping(2), without).global_step == 5
