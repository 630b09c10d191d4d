"""Progress: one line or bar on rank 0 with loss and tokens per second."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """A bar on a terminal; elsewhere (a log file, CI) a line about every tenth of the run.

    Tokens are real ones, over all ranks: set `include_num_input_tokens_seen="non_padding"` in the training arguments,
    otherwise their number is not known and not shown.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._loss: float | None = None
        self._last = (0.0, 0.0)
        self._rate: float | None = None
        self._tenth = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._last = (time.perf_counter(), float(state.num_input_tokens_seen))
        if sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="training")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
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
        tenth = 10 * state.global_step // state.max_steps
        if tenth > self._tenth:
            self._tenth = tenth
            print(f"step {state.global_step}/{state.max_steps}  {self._figures()}", flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _figures(self) -> str:
        rate = "" if self._rate is None else f"  {self._rate:,.0f} tokens/s"
        return f"loss {self._loss:.4f}{rate}"
