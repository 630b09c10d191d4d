"""Progress: one line or bar on rank 0 with loss, tokens per second and the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback


class Progress(TrainerCallback):
    """A bar on a terminal; elsewhere (a log file, CI) a line about every tenth of the run.

    Tokens are real ones, over all ranks: set `include_num_input_tokens_seen="non_padding"` in the training arguments,
    otherwise their number is not known and not shown. The time left (off a terminal, where a bar shows it) is that of
    the steps to go, each taken to last as the logged ones since training began, without the first, which compiles.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._loss: float | None = None
        self._last = (0.0, 0.0)
        self._rate: float | None = None
        self._tenth = -1
        self._after_first: tuple[float, int] | None = None
        self._left: float | None = None

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._last = (time.perf_counter(), float(state.num_input_tokens_seen))
        self._after_first = self._left = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="training")

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        now, tokens = time.perf_counter(), float(state.num_input_tokens_seen)
        before, before_tokens = self._last
        self._last = (now, tokens)
        self._loss = float(logs["loss"])
        self._rate = (tokens - before_tokens) / (now - before) if tokens > before_tokens else None
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures())
            return
        if self._after_first is None:
            self._after_first = (now, state.global_step)
        elif state.global_step > self._after_first[1]:
            since, step = self._after_first
            self._left = (now - since) / (state.global_step - step) * (state.max_steps - state.global_step)
        tenth = 10 * state.global_step // state.max_steps
        if tenth > self._tenth:
            self._tenth = tenth
            print(f"step {state.global_step}/{state.max_steps}  {self._figures()}{self._time_left()}", flush=True)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _time_left(self) -> str:
        return f"  {duration(self._left)} left" if self._left else ""

    def _figures(self) -> str:
        rate = "" if self._rate is None else f"  {self._rate:,.0f} tokens/s"
        return f"loss {self._loss:.4f}{rate}"


def duration(seconds: float) -> str:
    """As a reader takes it in: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
