"""The random numbers of this process, left as they were by what is computed in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def random_numbers_kept(device: torch.device | None = None) -> Iterator[None]:
    """Restore Python's, NumPy's and torch's generators at the end, with that of `device` where it is a GPU."""
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state()
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
