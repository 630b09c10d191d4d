"""SaveFirst: the adapter is on disk as soon as the last step is made, so that no later failure costs the training.

After the last step come an evaluation, a checkpoint, the best checkpoint's weights and everybody's last word
(transformers 5.17, `Trainer._maybe_log_save_evaluate` and `_finalize_training`): an evaluation that runs out of memory
would cost hours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.saving import SaveError


class SaveFirst(TrainerCallback):
    """Calls `save`, on every rank, once `is_over` says that the last step is made, and again with the best checkpoint's
    weights. It is given where the adapter went when its own place had no room.

    Must be the Trainer's first callback. A training that something else stopped is left to `finish`: what did knows
    whether it is finished.
    """

    def __init__(self, save: Callable[[Path | None], Path], is_over: Callable[[State], bool]) -> None:
        self.saved: Path | None = None
        """Directory of the adapter with the weights of now; None where it isn't saved yet, or could not be."""
        self._save, self._is_over = save, is_over
        self._tried = False
        """Whether it was tried with the weights of now, on every rank alike."""
        self._elsewhere: Path | None = None

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: object) -> None:
        self.saved, self._tried = None, False
        if self._is_over(state):
            self._try(state.is_world_process_zero)

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: object) -> None:
        # Of a training that an evaluation stopped: before the best checkpoint is loaded comes a last log.
        if not self._tried and self._is_over(state):
            self._try(state.is_world_process_zero)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: object) -> None:
        if args.load_best_model_at_end and self._is_over(state):
            self._try(state.is_world_process_zero)

    def finish(self) -> Path:
        """Save, unless the weights of now are saved; returns where. Raises `SaveError`."""
        return self.saved or self._attempt()

    def _try(self, first: bool) -> None:
        """Save; where that fails it is told, and tried again at the end: there may be room by then."""
        self.saved, self._tried = None, True
        try:
            self._attempt()
        except SaveError as error:
            if first:
                print(f"unsloth_accel: warning: {error}", file=sys.stderr, flush=True)

    def _attempt(self) -> Path:
        try:
            self.saved, self._elsewhere = self._save(self._elsewhere), None
        except SaveError as error:
            self._elsewhere = error.elsewhere
            raise
        return self.saved
