"""MemoryManager: memory of this process's GPU and of the host, and what is done before it is out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..adapters import environment
from ..adapters.lack_of_memory import is_lack_of_memory
from ..adapters.out_of_memory import ADVICE, OutOfMemory
from ..callbacks.memory_reading import machine, torch_memory
from ..callbacks.memory_watch import MemoryShares, memory_shares
from ..errors import ConfigError, Problem, first_line

GIB = 2**30


class MemoryManager:
    """Says how much memory is in use, frees what nothing holds, and tells a lack of it.

    `warning_threshold`, `critical_threshold`: shares of the GPU's memory, or of the host's, from which on
    `check_memory_safety` says `warning` or `critical`. `enable_auto_cleanup`: `memory_guard` frees first where it is
    critical. `read` gives the shares; tests give their own.
    """

    def __init__(
        self,
        warning_threshold: float = 0.85,
        critical_threshold: float = 0.95,
        enable_auto_cleanup: bool = True,
        *,
        read: Callable[[], MemoryShares] = memory_shares,
    ) -> None:
        shares = all(isinstance(one, int | float) for one in (warning_threshold, critical_threshold))
        if not shares or not 0 < warning_threshold <= critical_threshold <= 1:
            value = f"{warning_threshold}, {critical_threshold}"
            consequence = "are not shares of memory, the first the smaller one."
            fix = "warning_threshold=0.85, critical_threshold=0.95"
            raise ConfigError(Problem(key="thresholds", value=value, consequence=consequence, fix=fix))
        self.warning_threshold = warning_threshold
        self.critical_threshold = critical_threshold
        self.enable_auto_cleanup = enable_auto_cleanup
        self._read = read

    def get_gpu_memory_info(self) -> dict[str, float] | None:
        """Return GiB of this process's GPU: `total`, `others` (CUDA's context, NCCL, other processes), `reserved` by
        torch and its `peak` of allocated; None where no GPU is in use."""
        own, seen = torch_memory(), machine(0)
        if own is None:
            return None
        figures = {"total": seen.total, "others": seen.others, "reserved": own.reserved, "peak": own.peak}
        return {name: value / GIB for name, value in figures.items()}

    def get_cpu_memory_info(self) -> dict[str, float]:
        """Return the `used` share of the host's memory, or the container's, from 0 to 1, and this `process`'s GiB."""
        seen = machine(0)
        return {"used": seen.host, "process": seen.process / GIB}

    def check_memory_safety(self) -> dict[str, Any]:
        """Return `level` (`ok`, `warning`, `critical`), and the shares in use: `gpu` (None on a CPU) and `host`."""
        shares = self._read()
        most = max(shares.gpu or 0.0, shares.host)
        critical, warning = most >= self.critical_threshold, most >= self.warning_threshold
        level = "critical" if critical else "warning" if warning else "ok"
        return {"level": level, "gpu": shares.gpu, "host": shares.host}

    def cleanup_memory(self) -> float:
        """Free what nothing holds any more, on the host and in torch's cache on the GPU; returns GiB of GPU memory that
        torch gave back."""
        import torch

        gc.collect()
        before = torch_memory()
        if before is None:
            return 0.0
        torch.cuda.empty_cache()
        after = torch_memory()
        return (before.reserved - (after.reserved if after else 0)) / GIB

    @contextmanager
    def memory_guard(self) -> Iterator[None]:
        """Free first where memory is critical, and raise `OutOfMemory` with what helps in place of a lack of memory.

        What ran out is not done again: `enable_multi_gpu(enable_memory_optimization=True)` does steps again in halves.
        """
        if self.enable_auto_cleanup and self.check_memory_safety()["level"] == "critical":
            self.cleanup_memory()
        try:
            yield
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            self.cleanup_memory()
            told = f"out of memory: {first_line(error)}. {self.get_memory_report()} Fix: {ADVICE}."
            raise OutOfMemory(told) from error

    def get_memory_report(self) -> str:
        """Return what is in use, in a sentence."""
        host, gpu = self.get_cpu_memory_info(), self.get_gpu_memory_info()
        words = f"host {host['used']:.0%} in use, this process {host['process']:.1f} GiB"
        if gpu is not None:
            words += f"; GPU {gpu['reserved']:.1f} of {gpu['total']:.1f} GiB held by torch (peak {gpu['peak']:.1f} GiB)"
            words += f", {gpu['others']:.1f} GiB by others"
        return f"rank {environment.rank()}: {words}."

    def print_memory_report(self) -> None:
        """Print the report of this rank to stderr."""
        print(f"unsloth_accel: {self.get_memory_report()}", file=sys.stderr, flush=True)
