"""A training loop of one's own around Accelerate: prepare its objects, under any strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..adapters import environment, import_order, rank_checks
from ..adapters.fsdp2 import native
from ..adapters.fsdp2.generation import gather_in_generate
from ..adapters.varlen_attention import attend_at_once
from ..capabilities.probe import available
from ..errors import ConfigError, Problem
from .adapt import fit_to_strategy

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def prepare(accelerator: Accelerator, *objects: Any) -> Any:
    """`accelerator.prepare(*objects)` for a model that Unsloth loaded; returns what that returns, in the same order.

    Give the model and its optimizer together, and the loaders with them. Under `fsdp2_native` Unsloth shards the model
    here; under every strategy the run ends, with the reason, when its world is not the one that was launched, when the
    weights are whole although they were to be sharded, or when the ranks' first gradients or weights differ.

    Raises `GuardError`, `ImportOrderError`, and `ConfigError` for objects that can't be prepared as they are.
    """
    import torch

    available("methods that take a step of ours")
    promised = environment.promise()
    if promised is not None:
        rank_checks.check_world(promised)
        import_order.check_accelerator(accelerator)
    models = [one for one in objects if isinstance(one, torch.nn.Module)]
    optimizers = [one for one in objects if isinstance(one, torch.optim.Optimizer)]
    if native.requested():
        if len(models) != 1:
            consequence = "Unsloth's sharding prepares one model, together with its optimizer."
            fix = "unsloth_accel.prepare(accelerator, model, optimizer, …)"
            raise ConfigError(Problem(key="prepare", value=f"{len(models)} models", consequence=consequence, fix=fix))
        schedulers = any(isinstance(one, torch.optim.lr_scheduler.LRScheduler) for one in objects)
        native.shard(accelerator, models[0], optimizers, schedulers)
    attend_at_once(accelerator.device)
    fit_to_strategy(accelerator)
    prepared = accelerator.prepare(*objects)
    for model in [one for one in (prepared if len(objects) > 1 else [prepared]) if isinstance(one, torch.nn.Module)]:
        if promised is not None:
            rank_checks.check_sharded(promised, model)
        gather_in_generate(accelerator, model)
        for optimizer in optimizers:
            _check_first_step(model, optimizer)
    return prepared


def _check_first_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Compare the ranks' gradients before, and their weights after, the first step that `optimizer` really takes."""

    def before(*_: Any) -> None:
        whole = [gradient for gradient in rank_checks.gradients(model).values() if not rank_checks.is_sharded(gradient)]
        if whole and not any(bool(gradient.any()) for gradient in whole):
            return  # torch steps an optimizer once without gradients before it loads a state into it
        first.remove()
        rank_checks.check_equal(rank_checks.gradients(model), "gradients of the first step")

        def after(*_: Any) -> None:
            last.remove()
            rank_checks.check_equal(rank_checks.trainable(model), "trainable weights after the first step")

        last = optimizer.register_step_post_hook(after)

    first = optimizer.register_step_pre_hook(before)
