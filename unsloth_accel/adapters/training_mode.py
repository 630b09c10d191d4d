"""`model.train()` without walking through a model that is in training mode already.

Mends, in every transformers so far: `Trainer.training_step` calls it in each micro-batch, and it sets an attribute of
every module. An 8B model with LoRA has 2700: 5 ms of the processor's time, in which the GPU stands still wherever the
queue has just run empty, as after a log that reads the loss (`benchmarks.streams`). Looking is fifty times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

_MARK = "_unsloth_accel_looks_first"


def look_before_walking(trainer: Trainer) -> None:
    """Have the training steps of `trainer` set modules to training mode only if one isn't; once is enough."""
    if hasattr(trainer, _MARK):
        return
    plain = trainer.training_step
    known: dict[int, list[torch.nn.Module] | None] = {}

    def training_step(model: torch.nn.Module, *rest: Any, **named: Any) -> torch.Tensor:
        if id(model) not in known:
            known.clear()
            known[id(model)] = modules_of(model)
        modules = known[id(model)]
        if modules is None:
            return plain(model, *rest, **named)
        with looking_first(model, modules):
            return plain(model, *rest, **named)

    trainer.training_step = training_step
    setattr(trainer, _MARK, True)


def modules_of(model: torch.nn.Module) -> list[torch.nn.Module] | None:
    """All modules of `model`; None where `train` does more than set their flags, or can't be put in front of."""
    import torch
    from transformers import PreTrainedModel

    modules = list(model.modules())
    plain = (torch.nn.Module.train, PreTrainedModel.train, torch.nn.parallel.DistributedDataParallel.train)
    # DoRA's layers empty a cache, Unsloth's int4 ones switch kernels. A compiled model passes attributes on to the one
    # inside, whose `train` would then call itself.
    if hasattr(model, "_orig_mod") or any(type(module).train not in plain for module in modules):
        return None
    return modules


@contextmanager
def looking_first(model: torch.nn.Module, modules: list[torch.nn.Module]) -> Iterator[None]:
    """Inside, `model.train()` does nothing if all `modules`, which are the model's, are in training mode."""
    walk = model.train

    def train(mode: bool = True) -> torch.nn.Module:
        return model if mode and all(module.training for module in modules) else walk(mode)

    model.train = train
    try:
        yield
    finally:
        del model.train
