"""StepLog: every logged step, and every evaluation while it trains, as a line of JSON with its time and memory."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..adapters.hook_types import Arguments, Control, Json, State, TrainerCallback
from ..artifacts.log_file import LogFile, finite
from .memory_reading import torch_memory


class StepLog(TrainerCallback):
    """Writes to `path`, on rank 0, a line per log: step, the Trainer's figures, seconds, peak memory.

    A step that was logged has `loss`, an evaluation has `eval_loss`. What is evaluated before and after training is no
    part of it.

    `seconds` counts from the start of training; reading the loss for a log waits for the GPU, so with
    `logging_steps=1` differences of `seconds` are the times of steps. `peak_gib` is the most that torch allocated on
    rank 0's GPU so far (absent on a CPU; with `PeakMemory` it counts from the first step). A fresh run starts the file
    anew; resuming keeps the lines up to the checkpoint and goes on. Lines that can't be written end nothing
    (`artifacts.log_file`).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: LogFile | None = None
        self._start: float | None = None
        """Time at which the training began that goes on."""

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        there = ""
        with suppress(OSError):  # none, or one that can't be read
            there = self.path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(f"{line}\n" for line in there.splitlines() if _step(line) <= state.global_step)
        self._file = LogFile(self.path, anew=kept != there)
        if kept != there:
            self._file.write(kept.encode())
        self._start = time.perf_counter()

    def on_log(self, args: Arguments, state: State, control: Control, logs: Json | None = None, **kwargs: Any) -> None:
        told = any(key == "loss" or key.startswith("eval_") for key in logs or ())
        if self._start is None or self._file is None or logs is None or not told or not state.is_world_process_zero:
            return
        row = {"step": state.global_step, **logs, "seconds": round(time.perf_counter() - self._start, 4)}
        own = torch_memory()
        if own is not None:
            row["peak_gib"] = round(own.peak / 2**30, 3)
        self._file.add([{key: finite(value) for key, value in row.items()}])

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._start = None


def _step(line: str) -> float:
    """Return the step of a line; infinity for one that a crash cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
