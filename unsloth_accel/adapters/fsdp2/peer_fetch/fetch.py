"""Frozen weights fetched from the other GPUs' memory by copy engines, in place of FSDP2's all-gather.

FSDP2 gathers a unit by NCCL: its kernels take multiprocessors from the matrix products, the result is copied once more
into place, and every gather holds the ranks together. Frozen weights need none of that: nobody writes them, so a rank
may read its peers' rows at any time, straight to where they belong. The rows are put into memory that the GPUs of one
machine share (torch's symmetric memory), and each unit's `unshard` becomes a handful of copies on a stream of its own.

Blocks take turns in two sets of buffers: while one computes, the next one's weights arrive in the other. A block whose
weights are still in its buffers (at the turn from forward to backward) isn't fetched again. The input embedding isn't
fetched at all: its lookup reads the few rows that a batch names, where they are.

A rank's own rows aren't copied either: a block's weight is a range of addresses in which they are mapped between parts
of the buffers, which the other ranks' rows are copied to (`mapped_memory`). Where the driver refuses that, and with
UNSLOTH_ACCEL_PEER_GATHER=copied, they are copied like the others.

Figures: docs/fsdp2.md. Used where all ranks sit in one machine and reach each other's memory; elsewhere, and with
UNSLOTH_ACCEL_PEER_GATHER=0, FSDP2 gathers as always.
"""

from __future__ import annotations

from typing import Any

from ....capabilities.probe import available
from ..units import blocks_of, groups_of, units_of
from . import peer_reach
from .peer_unit import Unit, Units


def install(model: Any) -> str | None:
    """Have the frozen units of the FSDP2 model `model` fetched from peers; returns why not, or None where they are.

    Every rank must call it, before the first forward pass.
    """
    import torch
    import torch.distributed as dist

    if not available("weights fetched from peers", needed=torch.cuda.is_available()):
        return "the installed torch lacks a name that it needs"
    layers = blocks_of(model)
    if any(not getattr(group, "_reshard_after_forward", True) for layer in layers for group in groups_of(layer)):
        return "blocks stay gathered until their backward pass"
    reason = peer_reach.agreed(peer_reach.obstacle()) or peer_reach.agreed(peer_reach.trial())
    if reason is not None:
        return reason
    turns = {id(layer): index % 2 for index, layer in enumerate(layers)}
    units, head = Units(), model.get_output_embeddings()
    mapping = units.mapping = peer_reach.mapping()
    seen: set[int] = set()  # modules that are one unit together, as tied embeddings are, have one group
    for module in units_of(model):
        for group in groups_of(module):
            if id(group) not in seen and _can_be_fetched(group):
                seen.add(id(group))
                unit = Unit(units, group, turns.get(id(module)), largest=any(part is head for part in group.modules))
                if _is_plain_lookup(module, group):
                    unit.look_up_rows(module)
                # The rows' old place is free; without this the next unit's memory would come on top of it.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
    if mapping is not None:
        mapping.close()
    dist.barrier()
    torch.cuda.synchronize()
    model.__dict__["_unsloth_accel_peer"] = units
    return None


def shared_bytes(model: Any) -> int:
    """Return the bytes of this rank's rows that torch's allocator doesn't count, since they are in shared memory."""
    units = getattr(model, "_unsloth_accel_peer", None)
    return 0 if units is None else int(units.shared_bytes)


def mapped_bytes(model: Any) -> int:
    """Return the bytes of this rank's rows that are mapped where they are needed, and never copied."""
    units: Units | None = getattr(model, "_unsloth_accel_peer", None)
    return 0 if units is None else units.mapped_bytes


def meets_nowhere(model: Any) -> bool:
    """Return whether no pass of `model` waits for another rank: all that is divided is fetched."""
    units: Units | None = getattr(model, "_unsloth_accel_peer", None)
    if units is None:
        return False
    fetched = {id(unit.group) for unit in units.all}
    groups = [group for module in units_of(model) for group in groups_of(module)]
    return all(id(group) in fetched for group in groups if group.fsdp_params)


def start_over(model: Any) -> None:
    """Bring FSDP2 back to where a step begins, after a pass that an error ended (torch 2.13: `reset_iter_state`)."""
    import torch
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    units: Units = model._unsloth_accel_peer
    if model._get_fsdp_state()._is_root is None:
        return  # not even a first pass has begun
    # What is on its way must have arrived before its place is given to others.
    torch.cuda.current_stream().wait_stream(units.stream)
    if hasattr(model, "reset_iter_state"):
        model.reset_iter_state()
    else:
        state = model._get_fsdp_state()
        for one in state._state_ctx.all_states:
            one._training_state = TrainingState.IDLE
            one._modules_to_run_forward.clear()
        for module in units_of(model):
            for group in groups_of(module):
                group._all_gather_result = None
                group._post_forward_indices.clear()
                group._training_state = TrainingState.IDLE
                group._to_sharded()
        state._comm_ctx.post_forward_order.clear()
        state._state_ctx.iter_forward_root = None
        state._state_ctx.post_backward_final_callback_queued = False
    for unit in units.all:
        unit.forget()


def _can_be_fetched(group: Any) -> bool:
    import torch.distributed as dist

    mesh = group.mesh_info.mesh
    if mesh.ndim != 1 or mesh.size() != dist.get_world_size():  # the rows lie in groups of ranks
        return False
    return bool(group.fsdp_params) and all(
        not parameter.sharded_param.requires_grad and parameter.fsdp_placement.dim == 0 and not parameter.offload_to_cpu
        for parameter in group.fsdp_params
    )


def _is_plain_lookup(module: Any, group: Any) -> bool:
    """Return whether `module` is an embedding that only looks up rows, and nobody else uses its weight."""
    import torch

    return (
        isinstance(module, torch.nn.Embedding)
        and type(module).forward is torch.nn.Embedding.forward
        and "forward" not in vars(module)
        and module.max_norm is None
        and len(group.modules) == 1
        and len(group.fsdp_params) == 1
        and not group.fsdp_params[0]._module_info.shared_modules
    )
