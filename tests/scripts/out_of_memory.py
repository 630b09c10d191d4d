"""Train a run.yaml in which rank 1 runs out of memory: `--rows N` fails above N rows at once, `--kept N` also while
more than N blocks keep their activations.

`--forward` fails in the forward pass, otherwise it is at the end of the backward pass. The error is of torch's own type
and words, and what a GPU would have done before it, adding to some gradients, has happened too.
"""

import argparse
import os
import sys
from typing import Any

import unsloth_accel  # noqa: F401
from unsloth_accel.training import process

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--rows", type=int, required=True)
parser.add_argument("--kept", type=int, default=99)
parser.add_argument("--forward", action="store_true")
parser.add_argument("--backward", action="store_true")
arguments = parser.parse_args()
build = process.build_trainer


def fail(*_: Any) -> None:
    import torch

    print("OUT OF MEMORY", flush=True)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (injected)")


def building(*given: Any) -> Any:
    trainer = build(*given)
    from unsloth_accel.adapters.kept_activations import kept

    model = trainer.model
    weights = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = {"large": False}
    # The first layer's: the last to get its gradient, after all others have theirs.
    weights[0].register_hook(lambda gradient: fail() if state["large"] and not arguments.forward else None)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        large = kwargs["input_ids"].shape[0] > arguments.rows or kept(model) > arguments.kept
        state["large"] = module.training and large
        if state["large"] and arguments.forward:
            fail()

    if int(os.environ.get("RANK", "0")) == 1:
        model.register_forward_pre_hook(before, with_kwargs=True)
    return trainer


process.build_trainer = building
sys.exit(process.main(arguments.run))
