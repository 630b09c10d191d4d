"""RankSync: stops a run whose ranks have come to hold different weights."""

from __future__ import annotations

from typing import Any

from ..adapters import rank_checks
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from .rank_log import RankLog


class RankSync(TrainerCallback):
    """Compares checksums of the trainable weights over all ranks, every `every` steps.

    Raises `GuardError` on every rank. Bits are compared, not values (`adapters.rank_checks`), so there is no tolerance
    and no false alarm. Weights that are divided between the ranks are left out: nobody else holds the same part.
    `log` gets the error as a line.
    """

    def __init__(self, every: int = 100, log: RankLog | None = None) -> None:
        if every < 1:
            raise ValueError(f"every={every}: there is no such step to check after. Fix: give 1 or more.")
        self.every = every
        self._log = log
        self._equal = 0

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._equal = state.global_step

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        what = f"trainable weights after step {state.global_step} (last seen equal after step {self._equal})"
        try:
            rank_checks.check_equal(rank_checks.trainable(kwargs["model"]), what)
        except rank_checks.GuardError as error:
            if self._log is not None:
                self._log.warn("rank_sync", str(error), state.global_step, event="error")
            raise
        self._equal = state.global_step
