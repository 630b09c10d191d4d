"""Unsloth's own FSDP2 sharding in a loop that has no Trainer.

Mends, in Unsloth 2026.10.9: UNSLOTH_FSDP2=1 shards inside a Trainer only. In a plain loop `Accelerator.prepare` wraps
the model in DDP (on a CPU), or a model whose ranks each loaded a part of it can't run at all; and once the model is
sharded by `unsloth.models.fsdp2_native.shard_model`, prepare refuses it, because a loop might save or convert it as if
it were whole. Here the model is sharded first and the optimizer pointed to its shards; Unsloth's hooks in Accelerator,
which its Trainer has, then serve no_sync, clipping and get_state_dict, and still refuse save_state and float8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...capabilities.probe import available
from ...errors import ConfigError, Problem, raise_errors

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def requested() -> bool:
    """Return whether this process was told to use Unsloth's own sharding; False for an Unsloth that has none."""
    try:
        from unsloth.fsdp2_launch import unsloth_fsdp2_native_requested
    except ImportError:
        return False
    return bool(unsloth_fsdp2_native_requested())


def shard(
    accelerator: Accelerator, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], schedulers: bool
) -> None:
    """Shard `model` in place and let `optimizers` step its shards; `schedulers`: whether any are built on them.

    Raises `ConfigError`, before anything is changed, for what would train wrongly.
    """
    available("Unsloth's sharding in a loop")
    raise_errors(_problems(accelerator, optimizers))
    from unsloth.models import fsdp2_native

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if not fsdp2_native.is_native_fsdp2(model):
        settings = fsdp2_native.FSDP2Config.from_env()
        settings.device = accelerator.device.type
        fsdp2_native.shard_model(model, settings)
    sharded = dict(model.named_parameters())
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [sharded.get(names.get(id(old), ""), old) for old in group["params"]]
        if schedulers and len(fsdp2_native.split_param_groups(optimizer.param_groups)) > len(optimizer.param_groups):
            consequence = (
                "some trainable tensors are sharded and some whole, so Unsloth splits the optimizer's groups, and a "
                "scheduler built before would leave the new ones at their first learning rate."
            )
            fix = "build the scheduler from the optimizer that prepare returns, and set it to no other"
            raise ConfigError(Problem(key="scheduler", consequence=consequence, fix=fix))
    # Unsloth's word for an accelerator whose loop keeps to what its hooks can do.
    setattr(accelerator, fsdp2_native._TRAINER_ACCELERATOR, True)


def _problems(accelerator: Accelerator, optimizers: Sequence[Any]) -> list[Problem]:
    found = []
    if accelerator.mixed_precision == "fp16":
        consequence = "ranks would not agree on which steps overflowed, so some would skip a step that others take."
        fix = "mixed_precision: bf16, or a Trainer, or strategy ddp"
        found.append(Problem(key="mixed_precision", value="fp16", consequence=consequence, fix=fix))
    if any(optimizer.state for optimizer in optimizers):
        consequence = "it has stepped the whole weights already, and its state does not fit their shards."
        found.append(Problem(key="optimizer", consequence=consequence, fix="prepare it before its first step"))
    return found
