"""EarlyStopping: transformers' early stopping, resumed where it was, and with a word on why training ended."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback

from ..adapters.hook_types import Arguments, Control, Json, State


class EarlyStopping(EarlyStoppingCallback):
    """Stops training after `early_stopping_patience` evaluations in a row without a better `metric_for_best_model`.

    Every rank evaluates to the same figures, so all stop at the same step. transformers' own (5.17) starts to count
    anew in a resumed run, unless `restore_callback_states_from_checkpoint` replaces every callback of the Trainer;
    fails to save, where that run had no such callback; and counts an evaluation after training.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.stopped = ""
        """Why training ended before its last step; empty where it did not."""
        self._training = False

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        name = type(self).__name__
        held = state.stateful_callbacks.get(name, {}).get("attributes", {})
        self.early_stopping_patience_counter = held.get("early_stopping_patience_counter", 0)
        state.stateful_callbacks[name] = self.state()
        self._training, self.stopped = True, ""

    def on_evaluate(self, args: Arguments, state: State, control: Control, metrics: Json, **kwargs: Any) -> None:
        if not self._training:
            return
        super().on_evaluate(args, state, control, metrics, **kwargs)
        count = self.early_stopping_patience_counter
        if count < self.early_stopping_patience or state.global_step >= state.max_steps:
            return
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        times = "at this evaluation" if count == 1 else f"at {count} evaluations in a row"
        by = f" by more than {self.early_stopping_threshold:g}" if self.early_stopping_threshold else ""
        self.stopped = (
            f"stopped early, after step {state.global_step} of {state.max_steps}: {name}, now {metrics[name]:.4f}, was "
            f"not better than {state.best_metric:.4f}{by} {times}"
        )
        if state.is_world_process_zero:
            print(self.stopped, flush=True)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._training = False
