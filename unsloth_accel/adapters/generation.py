"""Generation from a model that FSDP2 shards: its weights are gathered for the time of it.

Mends, with accelerate 1.15's FSDP2 plugin, torch 2.13 and Unsloth 2026.10.9: FSDP2 gathers a unit's weights in the hook
of its module's call. `PeftModel.generate` calls the model inside and not the root unit, and Unsloth's decoding reads a
block's weights without calling the block; both meet shards, "got mixed torch.Tensor and DTensor". GRPO, and every
answer to a held-out row, ended there. Unsloth mends it for its own sharding (fsdp2_native), not for accelerate's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule

_INSIDE = "_unsloth_accel_generating"
_WRAPPED = "_unsloth_accel_gathers"


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Gather the weights of an FSDP2 `model` for as long as the block runs; any other model is left as it is.

    Every rank must enter and leave together. Inside, each GPU holds the whole model, in the dtype it computes in, beside
    its own shard: a model that is larger than one GPU can't generate this way. Gathering once costs less than gathering
    every block again for every token. Blocks may be nested; the outermost gathers and frees.
    """
    units = _units(model)
    if not units or getattr(model, _INSIDE, False):
        yield model
        return
    setattr(model, _INSIDE, True)
    held = [group for unit in units for group in _parameter_groups(unit)]
    meshes = [group.post_forward_mesh_info for group in held]
    try:
        for group in held:
            group.post_forward_mesh_info = None  # a forward pass inside doesn't free what it has used
        _unshard(units)
        yield model
    finally:
        delattr(model, _INSIDE)
        for group, mesh in zip(held, meshes, strict=True):
            group.post_forward_mesh_info = mesh
        for unit in units:
            unit.reshard()


def gather_in_generate(model: Any) -> None:
    """Let `model.generate`, and those of the models inside it, run under `generating(model)`; once is enough.

    What FSDP2 shards is found when it is called, so this may come before the model is sharded. Every rank must call
    `generate` then, with the same number of calls.
    """
    for module in model.modules():
        generate = getattr(module, "generate", None)
        if callable(generate) and not hasattr(generate, _WRAPPED):
            module.generate = _gathering(model, generate)


def _gathering(root: Any, generate: Any) -> Any:
    @functools.wraps(generate)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        with generating(root):
            return generate(*arguments, **keywords)

    setattr(wrapped, _WRAPPED, True)
    return wrapped


def _units(model: torch.nn.Module) -> list[FSDPModule]:
    """The FSDP2 units of `model`, in its order."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # torch < 2.6
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _parameter_groups(unit: FSDPModule) -> list[Any]:
    """The parameter groups of a unit: several from torch 2.13, one or none before."""
    state: Any = unit._get_fsdp_state()
    with suppress(AttributeError):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group else []


def _unshard(units: list[FSDPModule]) -> None:
    import torch

    # Tensors that are made under inference_mode can't be trained on later, and FSDP2 keeps what it makes here.
    with torch.inference_mode(False), torch.no_grad():
        for unit in units:
            unit.unshard()
