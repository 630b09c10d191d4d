"""EveryGradient: stops a run whose DDP waits for gradients that a step doesn't have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..adapters.ddp_settings import without_gradient
from ..adapters.hook_types import Arguments, Control, State, TrainerCallback
from ..adapters.rank_checks import GuardError

if TYPE_CHECKING:
    from accelerate import Accelerator


class EveryGradient(TrainerCallback):
    """Looks once, in the first step: a parameter without gradient keeps its whole bucket from being averaged, and DDP
    says so only in the next step, without a name. Raises `GuardError` on every rank."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._first = True

    def on_pre_optimizer_step(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not self._first:
            return
        self._first = False
        names = without_gradient(self._accelerator, kwargs["model"])
        if names:
            raise GuardError(
                f"{len(names)} trainable parameters got no gradient in the first step, first {names[0]}; DDP was told "
                "that each would (ddp_find_unused_parameters off), so the ranks' gradients were not averaged. Fix: "
                "don't train what the rows don't use (lora.target_modules), or ddp_find_unused_parameters=true with "
                "non-reentrant gradient checkpointing, or without any.",
                on_every_rank=True,
            )
