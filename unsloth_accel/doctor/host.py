"""Checks of disk, memory and limits of this host."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..config.hub_cache import hub_cache
from ..files import FULL, existing, unwritable, why_unwritten
from ..hardware.cpu_and_memory import memory_gib
from .machine import Machine
from .result import Result, error, warning

GIB = 2**30
NO_ROOM_GIB = 1.0
"""Free GiB below which nothing can be saved."""
OPEN_FILES = 1024
"""Linux's usual soft limit; data loader workers pass tensors as open files."""
SHARED_MEMORY = Path("/dev/shm")


def disk(machine: Machine) -> Iterator[Result]:
    """Free space where runs, models and temporary files go."""
    yield _space("disk, here", Path.cwd(), 10, "runs and checkpoints", "set output_dir to {}")
    cache, lost = hub_cache(machine.environ), "models in it load, and none can be downloaded"
    yield _space("disk, models", cache, 20, "an 8B model in bf16 is 16 GB", "export HF_HOME=… on {}", lost)
    temporary = Path(tempfile.gettempdir())
    yield _space("disk, temporary", temporary, 2, "compiled kernels", "export TMPDIR=… on {}")


def _space(name: str, place: Path, wanted_gib: float, purpose: str, elsewhere: str, lost: str = "") -> Result:
    """Return whether `place` can be written and has room; with `lost` said, a run may do without writing there."""
    there = existing(place)
    free = shutil.disk_usage(there).free / GIB
    detail = f"{free:.1f} GiB free in {place}"
    if (fault := unwritable(there)) and fault.errno not in FULL:
        why, mend = why_unwritten(fault, there)
        told = warning if lost else error
        detail = f"{place} can't be written: {why}{f'; {lost}' if lost else ''}"
        return told(name, detail, f"{mend}, or {elsewhere.format('a disk that can be written')}")
    fix = elsewhere.format("a larger disk") + (", or clean with `hf cache prune`" if lost else "")
    if free >= wanted_gib:
        return Result(name=name, detail=detail)
    told = error if free < NO_ROOM_GIB else warning
    return told(name, f"{detail} ({purpose})", fix)


def shared_memory(machine: Machine) -> Iterator[Result]:
    """/dev/shm, through which NCCL and data loaders pass tensors; Docker gives 64 MiB."""
    if not SHARED_MEMORY.is_dir():
        return
    size = shutil.disk_usage(SHARED_MEMORY).total / GIB
    detail = f"{size:.2f} GiB" if size < 1 else f"{size:.0f} GiB"
    if size >= 1:
        yield Result(name="/dev/shm", detail=detail)
        return
    detail += ": NCCL and data loader workers pass tensors through it, and die of a bus error when it is full"
    fix = "docker run --shm-size=8g, or --ipc=host"
    yield warning("/dev/shm", detail, fix, "NCCL User Guide, Troubleshooting: Shared memory")


def open_files(machine: Machine) -> Iterator[Result]:
    """The limit of open files."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= OPEN_FILES:
        yield Result(name="open files", detail="no limit" if limit == resource.RLIM_INFINITY else f"{limit} at most")
        return
    detail = f"{limit} at most: data loader workers and checkpoints end with 'Too many open files'"
    yield warning("open files", detail, "ulimit -n 65535 in the shell that launches")


def host_memory(machine: Machine) -> Iterator[Result]:
    """Host memory, and what a container's cgroup leaves of it."""
    import psutil

    total, why = memory_gib()
    free = min(psutil.virtual_memory().available / GIB, total)
    detail = f"{free:.0f} GiB available of {total:.0f} ({why})"
    if free >= 4:
        yield Result(name="memory", detail=detail)
        return
    fix = "end other programs, or raise the container's limit (docker run --memory)"
    detail += ": every process holds Python, torch and Unsloth, about 1.5 GiB, before it loads a model"
    yield warning("memory", detail, fix)
