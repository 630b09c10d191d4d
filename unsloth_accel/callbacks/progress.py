"""Progress: one line or bar on rank 0 with loss, tokens per second and the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback


class Progress(TrainerCallback):
    """A bar on a terminal; elsewhere (a log file, CI) a line about every tenth of the run; a line per evaluation.

    Tokens are real ones, over all ranks: set `include_num_input_tokens_seen="non_padding"` in the training arguments,
    otherwise their number is not known and not shown. The time left (off a terminal, where a bar shows it) is that of
    the steps to go, each taken to last as the logged ones since training began, without the first, which compiles.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._last = (0.0, 0.0)
        """Time and tokens at the last log."""
        self._tenth = -1
        self._after_first: tuple[float, int] | None = None
        self._trains = False

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._trains = True
        self._last = (time.perf_counter(), float(state.num_input_tokens_seen))
        self._after_first = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="training")

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if self._trains and "eval_loss" in logs:
            tell = self._bar.write if self._bar is not None else print
            held = _reward(logs, "eval_") or f"loss {float(logs['eval_loss']):.4f}"
            tell(f"step {state.global_step}/{state.max_steps}  held-out {held}")
            sys.stdout.flush()
        if "loss" not in logs:
            return
        now, tokens = time.perf_counter(), float(state.num_input_tokens_seen)
        before, before_tokens = self._last
        self._last = (now, tokens)
        rate = f"  {(tokens - before_tokens) / (now - before):,.0f} tokens/s" if tokens > before_tokens else ""
        figures = "  ".join(filter(None, (_reward(logs), f"loss {float(logs['loss']):.4f}"))) + rate
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
            return
        self._after_first = self._after_first or (now, state.global_step)
        since, first = self._after_first
        left = ""
        if first < state.global_step < state.max_steps:
            each = (now - since) / (state.global_step - first)
            left = f"  {duration(each * (state.max_steps - state.global_step))} left"
        tenth = 10 * state.global_step // state.max_steps
        if tenth > self._tenth:
            self._tenth = tenth
            print(f"step {state.global_step}/{state.max_steps}  {figures}{left}", flush=True)

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._trains = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _reward(logs: Json, prefix: str = "") -> str:
    """Return the mean reward of completions, which tells more than a loss that passes through 0; empty elsewhere."""
    reward = logs.get(f"{prefix}reward")
    return "" if reward is None else f"reward {float(reward):.4f}"


def duration(seconds: float) -> str:
    """Return seconds as 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
