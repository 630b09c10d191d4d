"""DDP: what a Trainer needs so that Accelerate really wraps its model.

Mends, in accelerate 1.15 with transformers 5.17: `trainer.evaluate()` before `trainer.train()` prepares the model for
evaluation and marks it as prepared; `train()` then prepares it again, Accelerate sees the mark and returns it without
DistributedDataParallel, and every rank trains alone, silently (Accelerator.prepare_model: the early return).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .rank_checks import distributed_type

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def wrap_after_evaluation(accelerator: Accelerator) -> None:
    """Let `accelerator` wrap a model for training that it has prepared for evaluation before."""
    from accelerate.utils import extract_model_from_parallel

    prepare_model = accelerator.prepare_model
    ddp = distributed_type().startswith("MULTI_")

    def prepare(
        model: torch.nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> torch.nn.Module:
        bare = extract_model_from_parallel(model, recursive=False) is model
        marked = getattr(model, "_is_accelerate_prepared", False)
        if ddp and not evaluation_mode and bare and marked:
            _forget(accelerator, model)
        prepared: torch.nn.Module = prepare_model(model, device_placement, evaluation_mode)
        return prepared

    accelerator.prepare_model = prepare


def _forget(accelerator: Accelerator, model: Any) -> None:
    """Undo what preparing for evaluation left on `model`: the mark, the place in the list, the autocast forward."""
    if model in accelerator._models:  # train() has emptied the list already
        accelerator._models.remove(model)
    model._is_accelerate_prepared = False
    original = vars(model).pop("_original_forward", None)
    if original is not None:
        model.forward = original
