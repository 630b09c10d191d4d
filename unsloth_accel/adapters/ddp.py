"""DDP: fixes that a Trainer needs so that Accelerate really wraps its model.

Mends, in accelerate 1.15 with transformers 5.17: `trainer.evaluate()` before `trainer.train()` prepares the model for
evaluation and marks it as prepared; `train()` then prepares it again, Accelerate sees the mark and returns it without
DistributedDataParallel, and every rank trains alone, silently (Accelerator.prepare_model: the early return).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..capabilities.probe import available
from .rank_checks import distributed_type

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

_STEPS = "_unsloth_accel_steps"


def before_wrapping(accelerator: Accelerator, name: str, step: Callable[[torch.nn.Module], None]) -> None:
    """Have `accelerator` do `step` with a model that it prepares for training under DDP, before it wraps it.

    Steps are done in the order in which they came; another of the same `name` takes the first one's place.
    """
    steps: dict[str, Any] | None = getattr(accelerator, _STEPS, None)
    if steps is None:
        steps = {}
        setattr(accelerator, _STEPS, steps)
        prepare_model, ddp = accelerator.prepare_model, distributed_type().startswith("MULTI_")

        def prepare(model: Any, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
            for one in steps.values() if ddp and not evaluation_mode else ():
                one(model)
            return prepare_model(model, device_placement, evaluation_mode)

        accelerator.prepare_model = prepare
    steps[name] = step


def wrap_after_evaluation(accelerator: Accelerator) -> None:
    """Let `accelerator` wrap a model for training that it has prepared for evaluation before."""
    from accelerate.utils import extract_model_from_parallel

    def forget(model: torch.nn.Module) -> None:
        bare = extract_model_from_parallel(model, recursive=False) is model
        if bare and getattr(model, "_is_accelerate_prepared", False):
            _forget(accelerator, model)

    if available("training after an evaluation", needed=accelerator.num_processes > 1):
        before_wrapping(accelerator, "forget", forget)


def _forget(accelerator: Accelerator, model: Any) -> None:
    """Undo what preparing for evaluation left on `model`: the mark, the place in the list, the autocast forward."""
    if model in accelerator._models:  # train() has emptied the list already
        accelerator._models.remove(model)
    model._is_accelerate_prepared = False
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
