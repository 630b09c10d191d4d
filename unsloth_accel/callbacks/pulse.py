"""Pulse: tells the heartbeat of this process what happens to the training: a number, a step, a phase."""

from __future__ import annotations

import time
from typing import Any

from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from .heartbeat import Heartbeat


class Pulse(TrainerCallback):
    """Counts for the watchdog what happens to the training: steps, micro-batches, evaluated batches, saves."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._began = 0.0

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._heartbeat.training(state.global_step)

    def on_step_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self._heartbeat.progress()

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._heartbeat.stepped(state.global_step, time.monotonic() - self._began)

    def on_substep_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._heartbeat.progress()

    on_optimizer_step = on_prediction_step = on_evaluate = on_save = on_log = on_substep_end

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._heartbeat.trained()
