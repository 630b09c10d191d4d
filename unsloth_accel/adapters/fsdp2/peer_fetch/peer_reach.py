"""Checks that ranks reach each other's GPU memory, and the choice of what own rows are mapped with (`fetch`)."""

from __future__ import annotations

import os
import socket
import warnings

from ....hardware.ranks import of_every_rank
from ... import environment
from .mapped_memory import Cuda, Mapping, MappingError, Memory

SWITCH = "UNSLOTH_ACCEL_PEER_GATHER"
"""Environment variable: 0 leaves the gathering to NCCL, `copied` copies a rank's own rows, too; `mapped`, as by
default, maps them, and has it told where that can't be done."""

ALIGNMENT = 256
"""Alignment in bytes, as the allocator's."""


def obstacle() -> str | None:
    """Return why this rank can't reach its peers' memory; None where it can."""
    import torch
    import torch.distributed as dist

    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if not torch.cuda.is_available() or not dist.is_initialized():
        return "no GPU"
    world, local = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if world != local:
        return f"{world} processes, {local} of them on {socket.gethostname()}"
    own = torch.cuda.current_device()
    if torch.cuda.device_count() < world:
        return "a process sees its own GPU only"
    far = [one for one in range(world) if one != own and not torch.cuda.can_device_access_peer(own, one)]
    return f"GPU {own} can't read the memory of GPU {far[0]}" if far else None


def trial() -> str | None:
    """Share a few bytes with the other ranks; returns why it can't be done. Every rank must call it."""
    import torch
    import torch.distributed as dist

    try:
        import torch.distributed._symmetric_memory as symmetric

        shared = symmetric.empty(ALIGNMENT, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device()))
        symmetric.rendezvous(shared, dist.group.WORLD.group_name)
    except Exception as error:  # whatever it is, NCCL still works
        return f"no symmetric memory: {type(error).__name__}: {error}"
    return None


def mapping() -> Mapping | None:
    """Return what maps own rows; None where they are to be copied or can't be mapped. Every rank must call it."""
    if os.environ.get(SWITCH) == "copied":
        return None
    found: Mapping | None = None
    try:
        found = Mapping(cuda_memory)
        found.trial()
    except MappingError as error:  # on every rank
        tell_copied(error)
        if found is not None:
            found.close()
        return None
    return found


def tell_copied(error: MappingError) -> None:
    # It costs a percent or two: worth a word only to someone who asked for it.
    if not environment.rank() and os.environ.get(SWITCH) == "mapped":
        warnings.warn(f"{SWITCH}=mapped: a rank's own rows are copied all the same: {error}.", stacklevel=2)


def cuda_memory() -> Memory:
    import torch

    return Cuda(torch.cuda.current_device())


def agreed(reason: str | None) -> str | None:
    """Return the first rank's obstacle, on every rank; ranks that fetch and ranks that gather would deadlock."""
    return next((other for other in of_every_rank(reason) if other is not None), None)
