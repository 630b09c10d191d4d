"""Train a run.yaml while rank 1 suffers from FAULT (in the environment): slow, nan or desync, `@` a step.

slow: in its loader up to that step, in its forward passes for ten steps, in its optimizer for ten, then in a callback.
"""

import os
import sys
import time
from typing import Any

import unsloth_accel  # noqa: F401
from unsloth_accel.adapters import environment
from unsloth_accel.callbacks import RankLog
from unsloth_accel.config.read_run import load
from unsloth_accel.training import process

SLEEP = 0.4
fault, step = os.environ["FAULT"].split("@")
first = int(step)
environment.show_own_errors_plainly()
run = load(sys.argv[1])
log = RankLog(f"{run.output_dir}/logs", environment.rank())


def integrations() -> None:
    """Let the Trainer place a callback where it places TensorBoard's."""
    import json

    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if args.process_index == 0:
                with open(f"{args.output_dir}/reported.jsonl", "a") as file:
                    file.write(json.dumps(logs) + "\n")

    integration_utils.INTEGRATION_TO_CALLBACK["tensorboard"] = Recorder


integrations()
from transformers import TrainerCallback  # noqa: E402

trainer = process.build_trainer(run, log)


def now() -> int:
    return int(trainer.state.global_step) + 1


def slow_loader(rows: Any, plain: Any = trainer.data_collator) -> Any:
    time.sleep(SLEEP if now() <= first else 0)
    return plain(rows)


def disturb(model: Any, inputs: Any) -> None:
    import torch

    if not model.training:
        return
    if fault == "slow" and first < now() <= first + 10:
        time.sleep(SLEEP)
    weight = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    if fault == "desync" and now() == int(step):
        weight.data.view(-1)[0] += 1e-3
    if fault == "nan" and now() == int(step):
        weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))


class Slow(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        plain = getattr(optimizer, "optimizer", optimizer)
        plain.register_step_pre_hook(lambda *_: time.sleep(SLEEP if first + 10 < now() <= first + 20 else 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(SLEEP if now() > first + 20 else 0)


if environment.rank() == 1:
    if fault == "slow":
        trainer.data_collator = slow_loader
        trainer.add_callback(Slow())
    trainer.model.register_forward_pre_hook(disturb)
try:
    trainer.train()
except BaseException as error:
    log.failed(error)
    raise
