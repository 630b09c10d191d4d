"""Where a launched run waits for its turn: before it loads anything, and after some of its steps.

BENCHMARK_GATE=FILE: each rank writes FILE.ready-RANK once it has imported what it needs, and waits until FILE is there.
BENCHMARK_PAUSES=6,16: after step 6 it waits so at FILE-after-6. After the last of them it doesn't wait, and rank 0
writes FILE.seconds: what the steps between two of them took, by the first one's number, `{"6": 3.1}`.
benchmarks.gate opens them. A user's script may import this module: nothing here is of unsloth_accel.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

GATE = "BENCHMARK_GATE"
PAUSES = "BENCHMARK_PAUSES"


def wait_at_gate(after: int | None = None, *, opens: bool = True) -> None:
    """Say that this rank has come to its gate, or to that `after` a step, and return when it is open; at once where
    there is none, or where this one is never opened."""
    base = os.environ.get(GATE)
    if not base:
        return
    gate = Path(base if after is None else f"{base}-after-{after}")
    gate.with_name(f"{gate.name}.ready-{os.environ.get('RANK', '0')}").touch()
    while opens and not gate.exists():
        time.sleep(0.02)


def pause_every_trainer() -> None:
    """Have each Trainer that is made from now on wait after the steps of BENCHMARK_PAUSES, if there are any."""
    pauses = [int(step) for step in os.environ.get(PAUSES, "").split(",") if step]
    if not pauses:
        return
    import torch
    from transformers import TrainerCallback, trainer

    class Pause(TrainerCallback):
        """First of all callbacks, so that what the others do after a step is in the time of those that follow it."""

        def __init__(self) -> None:
            self.seconds: dict[str, float] = {}
            self.begun: tuple[int, float] | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            if step not in pauses:
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if self.begun is not None:
                self.seconds[str(self.begun[0])] = round(time.perf_counter() - self.begun[1], 4)
            is_last = step == pauses[-1]
            if is_last and args.process_index == 0:
                Path(f"{os.environ[GATE]}.seconds").write_text(json.dumps(self.seconds), encoding="utf-8")
            wait_at_gate(step, opens=not is_last)
            self.begun = (step, time.perf_counter())

    trainer.DEFAULT_CALLBACKS.append(Pause)
