"""Clock of the time that training spends in callbacks between its steps."""

from __future__ import annotations

import time
from typing import Any

from ..capabilities.probe import available

BETWEEN_STEPS = ("on_step_end", "on_log", "on_epoch_begin", "on_epoch_end")


class CallbackClock:
    """Sums the seconds that this process spends in its Trainer's callbacks between steps, between `start` and `stop`.

    Measured at their handler, so that a callback of the user's, wherever it stands, is in it. Those that run inside of
    a step are in the step's own time. What a callback waits for other ranks, as `RankSync` does every hundred steps,
    counts as its own.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._plain: Any = None
        self._inside = False

    def start(self) -> None:
        if self._plain is not None or not available("the time in callbacks"):
            return
        from transformers.trainer_callback import CallbackHandler

        self._plain = plain = CallbackHandler.call_event

        def timed(handler: Any, event: str, *args: Any, **kwargs: Any) -> Any:
            if self._inside or event not in BETWEEN_STEPS:  # a callback may make the Trainer log
                return plain(handler, event, *args, **kwargs)
            started, self._inside = time.perf_counter(), True
            try:
                return plain(handler, event, *args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - started

        CallbackHandler.call_event = timed

    def stop(self) -> None:
        if self._plain is not None:
            from transformers.trainer_callback import CallbackHandler

            CallbackHandler.call_event = self._plain
            self._plain = None

    def take(self) -> float:
        """Return the seconds since the last call."""
        taken, self.seconds = self.seconds, 0.0
        return taken
