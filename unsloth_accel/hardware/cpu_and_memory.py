"""The machine beside its GPUs: cores, memory and bfloat16 of the CPU, each with its reason."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_CPU_INFO = Path("/proc/cpuinfo")
_NO_LIMIT = 2**60
"""Bytes that stand for no limit: cgroup v1 writes a number near 2^63 there."""


def cores() -> tuple[int, str]:
    """Return the cores that this process may use, at least 1: its affinity, or fewer by a container's CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed, why = len(os.sched_getaffinity(0)), "the CPU affinity of this process"
    else:
        allowed, why = os.cpu_count() or 1, "the machine's count"
    quota = min(_cpu_quotas(), default=float("inf"))
    if quota < allowed:
        return max(1, int(quota)), f"the cgroup's CPU quota of {quota:g}, below the {allowed} of {why}"
    return allowed, why


def memory_gib() -> tuple[float, str]:
    """Return the GiB of memory that this process may use: the machine's, or less by a container's limit."""
    import psutil

    total = psutil.virtual_memory().total
    limit = min(_memory_limits(), default=_NO_LIMIT)
    if limit < total:
        return limit / 2**30, f"the cgroup's memory limit, below the machine's {total / 2**30:.0f} GiB"
    return total / 2**30, "the machine's, from psutil"


@functools.cache
def bf16() -> tuple[bool, str]:
    """Return whether the CPU multiplies bfloat16 natively: AVX512-BF16 or AMX in /proc/cpuinfo."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False, "there is no /proc/cpuinfo"
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    found = sorted({"avx512_bf16", "amx_bf16"} & flags)
    return bool(found), ", ".join(found) if found else "neither avx512_bf16 nor amx_bf16 in /proc/cpuinfo"


def _memory_limits() -> Iterator[int]:
    """Yield the memory limits, in bytes, of every cgroup around this process; the tightest counts."""
    for directory in _directories("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(directory / name)
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                yield int(limit)


def _cpu_quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of every cgroup around this process."""
    for directory in _directories("cpu"):
        words = _read(directory / "cpu.max").split()
        words = words or [_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            yield int(words[0]) / int(words[1])


def _directories(controller: str) -> Iterator[Path]:
    """This process's cgroup of version 2, or of `controller` in version 1, and those around it."""
    for line in _read(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        own = root / path.strip("/")
        yield from (directory for directory in (own, *own.parents) if directory.is_relative_to(root))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
