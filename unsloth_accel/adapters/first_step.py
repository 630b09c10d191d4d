"""The guard of loops without a Trainer: the first step of every optimizer that steps weights of a prepared model.

It watches the steps themselves, by torch's hooks for all optimizers: whichever object was given to `prepare` in which
call, and whether the optimizer was at all, its step shows whose weights it holds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from . import rank_checks

if TYPE_CHECKING:
    import torch

_models: WeakSet[torch.nn.Module] = WeakSet()
_steps: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()
"""Steps that were compared, by optimizer, since something was last prepared."""


def watch(*models: torch.nn.Module) -> None:
    """Compare the ranks' gradients before, and their weights after, the next step of every optimizer over `models` or
    over those that were given before; raises `GuardError` there, on every rank."""
    _models.update(models)
    _steps.clear()
    _hook_all()


def of_prepared(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The parameters that `optimizer` steps and a prepared model has, by name, in the optimizer's order."""
    names = {id(parameter): name for model in _models for name, parameter in model.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if name := names.get(id(parameter)):
                found[f"{name} (of another model)" if name in found else name] = parameter
    return found


@cache
def _hook_all() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    register_optimizer_step_pre_hook(_before)
    register_optimizer_step_post_hook(_after)


def _before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if not _models or optimizer in _steps:
        return
    parameters = of_prepared(optimizer)
    gradients = {name: one.grad.detach() for name, one in parameters.items() if one.grad is not None}
    if parameters:
        rank_checks.check_equal(gradients, "gradients of the first step")
    # Not yet where they are all 0: so torch steps an optimizer once before it loads a state into it.
    if not parameters or any(rank_checks.is_sharded(one) or bool(one.any()) for one in gradients.values()):
        _steps[optimizer] = 0 if parameters else 1


def _after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if _steps.get(optimizer) == 0:
        _steps[optimizer] = 1
        weights = {name: one.detach() for name, one in of_prepared(optimizer).items()}
        rank_checks.check_equal(weights, "trainable weights after the first step")
