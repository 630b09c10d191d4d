"""FSDP2's units in a model, those that are blocks, and their parameter groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule


def units_of(model: torch.nn.Module) -> list[FSDPModule]:
    """Return the FSDP2 units of `model`, in its order, itself included."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # torch < 2.6
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def blocks_of(model: torch.nn.Module) -> list[Any]:
    """Return the units that are items of a list of layers, in order."""
    import torch

    sharded = {id(unit) for unit in units_of(model)}
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return [item for layers in lists for item in layers if id(item) in sharded]


def groups_of(unit: Any) -> list[Any]:
    """Return FSDP2's parameter groups of a unit (before torch 2.13 at most one, in an attribute of its own)."""
    state = unit._get_fsdp_state()
    found = getattr(state, "_fsdp_param_groups", None)
    if found is None:
        found = [state._fsdp_param_group]
    return [group for group in found if group is not None]


def let_go(model: torch.nn.Module) -> None:
    """Free what the units of `model` have gathered: each rank holds its own shards again, as after a step.

    A forward pass without a backward one, such as an evaluation's last, leaves the last units whole. The optimizer then
    holds shards that the model doesn't show, so that a checkpoint can't name them; a saved adapter would have these
    weights in the dtype that they are computed in. It changes nothing where all are sharded.
    """
    for unit in units_of(model):
        unit.reshard()
