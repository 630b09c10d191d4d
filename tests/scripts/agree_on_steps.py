"""Two processes that agree on steps through gloo: when each stops, saves, and what agreeing costs."""

import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerControl, TrainerState

from unsloth_accel.callbacks.step_agreement import LONG, StepAgreement
from unsloth_accel.callbacks.stop_request import Stopped

state = PartialState(cpu=True)
rank = state.process_index
asked = SimpleNamespace(number=0, agreed=lambda: None, begin=lambda: None, know=lambda directory: None)
args = SimpleNamespace(world_size=2, output_dir=sys.argv[1], save_strategy="no")


class Shown(StepAgreement):
    """One of which the steps' lengths are made up."""

    seconds = 0.0

    def _pace(self) -> float:
        super()._pace()
        return self.seconds


class Evaluating(Shown):
    def save_now(self) -> None: ...

    def __setattr__(self, name: str, value: object) -> None:
        if name != "save_now":
            super().__setattr__(name, value)


def train(
    one: Shown, asked_at: int, long_from: int = 99, saved_at: int = 99, evaluates: bool = False, quick: bool = False
) -> dict[str, list[int]]:
    """Twelve steps: rank 1 is asked to stop within step `asked_at`, and its steps are long from `long_from` on."""
    found: dict[str, Any] = {"saved": [], "stopped": []}
    control = TrainerControl()
    asked.number = 0
    one.on_train_begin(args, TrainerState(is_world_process_zero=rank == 0), control)
    for step in range(1, 13):
        now = TrainerState(global_step=step, max_steps=12, is_world_process_zero=rank == 0)
        asked.number = 15 if rank == 1 and step >= asked_at else 0
        one.seconds = LONG if rank == 1 and step >= long_from else 0.06 * quick
        one.save_minutes = 0.0 if step in (saved_at, saved_at + 1) else None
        control.should_save = False
        one.on_step_end(args, now, control)
        if control.should_save:
            found["saved"].append(step)
            one.on_save(args, now, control)
        try:
            for _ in range(3 if step == 4 and evaluates else 0):
                asked.number = 15 if rank == 1 else 0
                one.on_prediction_step(args, now, control)
                found["saved"].append(-step)
        except Stopped as stopped:
            return found | {"said": str(stopped), "status": stopped.code}
        if control.should_training_stop:
            found["stopped"].append(step)
            try:
                one.on_epoch_end(args, now, control)
            except Stopped as stopped:
                return found | {"said": str(stopped), "status": stopped.code}
    one.on_train_end(args, now, control)
    return found


told = [
    train(Shown(saves=True, request=asked), 1),
    train(Shown(saves=True, request=asked), 5),
    train(Shown(saves=True, request=asked), 5, long_from=3),
    train(Shown(request=asked), 99, saved_at=4),
    train(Shown(request=asked), 12),
    train(Shown(saves=True, request=asked), 5, quick=True),
    train(Evaluating(saves=True, request=asked), 99, evaluates=True),
]
one, control = StepAgreement(15.0, request=asked), TrainerControl()
asked.number = 0
one.on_train_begin(args, TrainerState(is_world_process_zero=rank == 0), control)
spent = 0.0
for step in range(1, 301):
    now = TrainerState(global_step=step, max_steps=999, is_world_process_zero=rank == 0)
    torch.distributed.barrier()  # as a step's gradients are
    time.sleep(0.01)
    began = time.perf_counter()
    one.on_step_end(args, now, control)
    spent += time.perf_counter() - began
one.on_train_end(args, now, control)
with open(os.path.join(sys.argv[1], f"rank-{rank}.json"), "w", encoding="utf-8") as file:
    json.dump({"told": told, "microseconds": 1e6 * spent / 300}, file)
