"""The guard of loops without a Trainer: the steps of every optimizer that steps weights of a prepared model.

It watches the steps themselves, by torch's hooks for all optimizers: whichever object was given to `prepare` in which
call, and whether the optimizer was at all, its step shows whose weights it holds.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

from ..hardware.ranks import of_every_rank
from . import rank_agreement, rank_checks, rank_loaders

if TYPE_CHECKING:
    import torch

_models: WeakSet[torch.nn.Module] = WeakSet()
_loaders: list[ref[Any]] = []
_steps: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()
"""Steps that each optimizer began since models were last prepared; 0 for one that steps nothing prepared."""


def watch(*models: torch.nn.Module) -> None:
    """Compare the ranks' gradients before, and their weights after, the next step of every optimizer over `models` or
    over those that were given before; raises `GuardError` there, on every rank."""
    _models.update(models)
    _steps.clear()
    _hook_all()


def watch_loaders(*loaders: Any) -> None:
    """Compare what the ranks draw from `loaders`, before the steps 1, 2, 3, 5, 9, 17, … of every such optimizer, where
    ranks are in step; it need not be so where a loader begins. Raises `GuardError` there, on every rank."""
    for loader in loaders:
        rank_loaders.watch(loader)
        _loaders.append(ref(loader))


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
    if not _models:
        return
    if begun := _steps.get(optimizer):
        if begun & (begun - 1) == 0:
            _check_drawn()
        _steps[optimizer] = begun + 1
    elif begun is None and (parameters := of_prepared(optimizer)):
        gradients = {name: one.grad.detach() for name, one in parameters.items() if one.grad is not None}
        rank_checks.check_equal(gradients, "gradients of the first step")
        # Not yet where they are all 0: so torch steps an optimizer once before it loads a state into it. All ranks as
        # one, for under FSDP1 the part that one of them holds may be 0, or nothing, in a true step.
        if any(of_every_rank(any(rank_checks.is_sharded(one) or bool(one.any()) for one in gradients.values()))):
            _check_loaders()
            _steps[optimizer] = 1
    else:
        _steps[optimizer] = 0


def _after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if _steps.get(optimizer) == 1:
        weights = {name: one.detach() for name, one in of_prepared(optimizer).items()}
        rank_checks.check_equal(weights, "trainable weights after the first step")


def _check_loaders() -> None:
    facts: dict[str, Any] = {}
    for number, held in enumerate(_loaders):
        loader = held()
        known = {"": rank_agreement.UNKNOWN} if loader is None else rank_loaders.facts_of(loader)
        facts |= {f"loader {number}: {name}": value for name, value in known.items()}
    rank_agreement.check_same(facts, "data loader and collator")
    _check_drawn()


def _check_drawn() -> None:
    known = {number: loader for number, held in enumerate(_loaders) if (loader := held()) is not None}
    drawn = {number: rank_loaders.watch(loader) for number, loader in known.items()}
    rank_loaders.check_drawn({number: one for number, one in drawn.items() if one is not None})
