"""Memory of GPU and host, read cheaply enough for every step."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..hardware.cpu_and_memory import memory_gib

if TYPE_CHECKING:
    import psutil

SECONDS = 1.0
"""Age in seconds up to which figures are used again: each query costs as much as a few kernels' launches."""


@dataclass(frozen=True, kw_only=True)
class TorchMemory:
    """Memory of torch's allocator on this process's GPU, in bytes."""

    peak: int
    """Most bytes that were allocated so far."""
    reserved: int
    """Bytes held now."""
    retries: int
    """Number of times that it had to free what it held to go on."""


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """Memory by the driver and the system, in bytes."""

    total: int
    """Total memory of the GPU; 0 without one."""
    others: int
    """GPU memory in use beside torch's allocator: CUDA's context, NCCL's buffers, other processes."""
    host: float
    """Share of this machine's memory, or of the container's, that is in use, from 0 to 1."""
    process: int
    """Resident memory of this process."""


def torch_memory() -> TorchMemory | None:
    """Return torch's figures of now; None without a GPU in use."""
    import torch

    # Nested, as torch counts it: each of torch.cuda.max_memory_allocated, memory_reserved and memory_stats makes the
    # same dictionary, flattens it and sorts its two hundred entries.
    stats: dict[str, Any] = torch.cuda.memory_stats_as_nested_dict() if torch.cuda.is_available() else {}
    if not stats:
        return None
    return TorchMemory(
        peak=stats["allocated_bytes"]["all"]["peak"],
        reserved=stats["reserved_bytes"]["all"]["current"],
        retries=stats["num_alloc_retries"],
    )


def machine(seconds: float = SECONDS) -> MachineMemory:
    """Return figures at most `seconds` old, with the GPU's where one is in use by now."""
    now = time.monotonic()
    if not _read or now - _read[0][0] > seconds or (not _read[0][1].total and torch_memory() is not None):
        _read[:] = [(now, _machine())]
    return _read[0][1]


_read: list[tuple[float, MachineMemory]] = []


def _machine() -> MachineMemory:
    import psutil
    import torch

    seen = psutil.virtual_memory()
    used = seen.total - seen.available
    total = others = 0
    own = torch_memory()
    if own is not None:
        free, total = torch.cuda.mem_get_info()
        others = total - free - own.reserved
    return MachineMemory(
        total=total,
        others=others,
        # A container's processes share its limit; the ranks of one machine are alike.
        host=max(used / seen.total, min(1.0, used / max(_allowed(), 1))),
        process=_process().memory_info().rss,
    )


@functools.cache
def _process() -> psutil.Process:
    import psutil

    return psutil.Process()


@functools.cache
def _allowed() -> float:
    """Return the bytes that may be used; read once, since a container's limits are files in every group around it."""
    return memory_gib()[0] * 2**30
