"""What the processes of a training tell each other."""

from __future__ import annotations

from typing import Any


def of_every_rank(value: Any) -> list[Any]:
    """Return what every rank gives, by rank; a collective, so that all have arrived when it returns. In a process that
    belongs to no group it is the process's own."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    # Not accelerate's: it asks nobody where its own state knows of no group, and ranks would go different ways.
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone
