"""What the processes of a training tell each other."""

from __future__ import annotations

from typing import Any


def of_every_rank(value: Any) -> list[Any]:
    """Return what every rank gives, by rank; a collective, so that all have arrived when it returns. In a process that
    belongs to no group it is the process's own."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    from accelerate.utils import gather_object

    everyone: list[Any] = gather_object([value])
    return everyone
