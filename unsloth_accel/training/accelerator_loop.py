"""A training loop of one's own around Accelerate: prepare its objects, under any strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..adapters import environment, first_step, import_order, rank_checks
from ..adapters.block_trials import keep_trials_apart
from ..adapters.fsdp2 import native
from ..adapters.fsdp2.generation import gather_in_generate
from ..adapters.kept_activations import keep_as_planned
from ..adapters.model_card import own_cards
from ..adapters.varlen_attention import attend_at_once
from ..artifacts.fused_experts import forget_old_names
from ..callbacks.stop_request import follow_launcher
from ..capabilities.probe import available
from ..errors import ConfigError, Problem
from .adapt import fit_to_strategy

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def prepare(accelerator: Accelerator, *objects: Any) -> Any:
    """`accelerator.prepare(*objects)` for a model that Unsloth loaded; returns what that returns, in the same order.

    Everything may be given in one call or in several, in any order; but where the weights are sharded, the model
    together with its optimizer. Under `fsdp2_native` Unsloth shards the model here; under every strategy the run ends,
    with the reason, when its world is not the one that was launched, when the weights are whole although they were to
    be sharded, or when the ranks' first gradients or weights differ (`adapters.first_step`).
    A scheduler makes one step for each step of the optimizer, so that its rates are those of one process: count them
    so when it is made. (Accelerate's own makes one for each process, unless `split_batches` is set.)

    A rank whose launcher is gone gets a SIGTERM (`callbacks.stop_request`).

    Raises `GuardError`, `ImportOrderError`, and `ConfigError` for objects that can't be prepared as they are.
    """
    import torch
    from accelerate.scheduler import AcceleratedScheduler

    available("methods that take a step of ours")
    follow_launcher()
    promised = environment.promise()
    if promised is not None:
        rank_checks.check_world(promised)
        import_order.check_accelerator(accelerator)
    models = [one for one in objects if isinstance(one, torch.nn.Module)]
    for model in models:
        own_cards(model)
    optimizers = [one for one in objects if isinstance(one, torch.optim.Optimizer)]
    _refuse_apart(accelerator, models, optimizers)
    if native.requested() and models:
        scheduled = any(isinstance(one, torch.optim.lr_scheduler.LRScheduler) for one in objects)
        native.shard(accelerator, models[0], optimizers, scheduled)
    for model in models:
        keep_as_planned(model)
        keep_trials_apart(model)
        forget_old_names(model)
    attend_at_once(accelerator.device)
    fit_to_strategy(accelerator)
    result = accelerator.prepare(*objects)
    prepared = result if len(objects) > 1 else [result]
    schedulers = [one for one in prepared if isinstance(one, AcceleratedScheduler)]
    available("schedulers that step once per optimizer step", needed=bool(schedulers))
    for scheduler in schedulers:
        if scheduler.step_with_optimizer and not scheduler.split_batches and accelerator.num_processes > 1:
            several = f"accelerator.prepare alone would make {accelerator.num_processes}"
            accelerator.print(f"unsloth_accel: the scheduler makes one step per optimizer step ({several})", flush=True)
        scheduler.split_batches = True  # accelerate's word for just that
    prepared_models = [one for one in prepared if isinstance(one, torch.nn.Module)]
    for model in prepared_models:
        if promised is not None:
            rank_checks.check_sharded(promised, model)
        gather_in_generate(accelerator, model)
    if models or optimizers:
        first_step.watch(*prepared_models)
    first_step.watch_loaders(*[one for one in prepared if isinstance(one, torch.utils.data.DataLoader)])
    return result


def _refuse_apart(accelerator: Accelerator, models: Sequence[torch.nn.Module], optimizers: Sequence[Any]) -> None:
    """Raise `ConfigError` where weights are to be sharded and an optimizer is given without them: it would go on with
    the whole ones, which nobody reads any more."""
    if native.requested():
        apart = len(models) > 1 or any(not models and not first_step.of_prepared(one) for one in optimizers)
    else:
        apart = accelerator.is_fsdp2 and (len(models) > 1 or bool(models) != bool(optimizers))
    if apart:
        value = f"{len(models)} models and {len(optimizers)} optimizers"
        consequence = "the weights are sharded here, so that an optimizer must be given together with its one model."
        fix = "unsloth_accel.prepare(accelerator, model, optimizer, …)"
        raise ConfigError(Problem(key="prepare", value=value, consequence=consequence, fix=fix))
