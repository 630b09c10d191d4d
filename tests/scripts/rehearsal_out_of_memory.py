"""Train a run.yaml in which rank 1 runs out of memory: above so many tokens at once in training, or in an evaluation,
or with the activations of so many blocks.

rehearsal_out_of_memory.py RUN --trained N | --evaluated N | --kept N; a line for each time tells which it was.
"""

import argparse
import os
import sys
from typing import Any

import unsloth_accel  # noqa: F401
from unsloth_accel.training import process

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--trained", type=int, default=2**31)
parser.add_argument("--evaluated", type=int, default=2**31)
parser.add_argument("--kept", type=int, default=2**31)
arguments = parser.parse_args()
build = process.build_trainer


def building(*given: Any) -> Any:
    trainer = build(*given)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        import torch

        from unsloth_accel.adapters.kept_activations import kept

        most = arguments.trained if module.training else arguments.evaluated
        if kwargs["input_ids"].numel() > most or (module.training and kept(module) > arguments.kept):
            print("OUT OF MEMORY", "in training" if module.training else "in an evaluation", flush=True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (injected)")

    if int(os.environ.get("RANK", "0")) == 1:
        trainer.model.register_forward_pre_hook(before, with_kwargs=True)
    return trainer


process.build_trainer = building
sys.exit(process.main(arguments.run))
