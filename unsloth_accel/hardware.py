"""Hardware: the GPUs and cores that a run may use, found without torch and without a CUDA context."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU."""

    name: str
    index: int
    """Number among this machine's GPUs, in PCI order, as NVML and CUDA_DEVICE_ORDER=PCI_BUS_ID count them."""
    memory_gib: float
    compute_capability: tuple[int, int]
    uuid: str = ""
    """`GPU-…`: names the GPU whatever order CUDA counts in."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one machine offers."""

    devices: tuple[Device, ...] = ()
    cpu_cores: int
    """Cores this process may run on, at least 1."""
    host_memory_gib: float
    cpu_bf16: bool = False
    """The CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    reason: str = ""
    """How the GPUs were found, or why there are none."""

    def __str__(self) -> str:
        if not self.devices:
            return f"CPU, {self.cpu_cores} cores, {self.host_memory_gib:.0f} GiB ({self.reason})"
        device = self.devices[0]
        return f"{len(self.devices)} × {device.name}, {device.memory_gib:.0f} GiB each ({self.reason})"


def detect(environ: Mapping[str, str] = os.environ) -> Hardware:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, and its cores and memory."""
    import psutil

    devices, reason = _visible(*_nvml_devices(), environ.get("CUDA_VISIBLE_DEVICES"))
    return Hardware(
        devices=devices,
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        host_memory_gib=psutil.virtual_memory().total / 2**30,
        cpu_bf16=bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()),
        reason=reason,
    )


def _nvml_devices() -> tuple[list[Device], str]:
    """Every GPU of the machine, and how it was found."""
    try:
        import pynvml
    except ImportError:
        return [], "nvidia-ml-py is not installed, so no GPU can be seen"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            device = Device(
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                index=index,
                memory_gib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30,
                compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            )
            found.append(device)
        return found, "NVML"
    except pynvml.NVMLError as error:
        return [], f"NVML: {error}"
    finally:
        pynvml.nvmlShutdown()


def _visible(found: list[Device], reason: str, chosen: str | None) -> tuple[tuple[Device, ...], str]:
    """Choose from `found` as CUDA does: indices or UUID prefixes, up to the first that names no GPU."""
    if chosen is None or not found:
        return tuple(found), reason
    devices: list[Device] = []
    for token in filter(None, (token.strip() for token in chosen.split(","))):
        named = [d for d in found if token == str(d.index) or (token[:4] == "GPU-" and d.uuid.startswith(token))]
        if len(named) != 1 or named[0] in devices:
            break
        devices += named
    return tuple(devices), f"{reason}, CUDA_VISIBLE_DEVICES={chosen}"


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Instruction sets from /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
