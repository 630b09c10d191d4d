"""Hardware: the GPUs and cores that a run may use, found without torch and without a CUDA context."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import counted
from .detect import detect_hardware
from .device import Device, Link
from .parse import parse


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs, cores and memory of one machine, and the number of such machines."""

    devices: tuple[Device, ...] = ()
    """GPUs of one machine; they may differ from one another."""
    cpu_cores: int
    """Cores of one machine that this process may run on, at least 1."""
    host_memory_gib: float
    """GiB of host memory of one machine that this process may use."""
    cpu_bf16: bool = False
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    reason: str = ""
    """Sentence on how the GPUs were found, or why there are none."""
    num_machines: int = 1
    """Number of machines, all alike."""
    link: Link | None = None
    """Slowest link between two GPUs of one machine; None with fewer than two GPUs, or if it is unknown."""
    link_gbs: float | None = None
    """Rate in 10^9 bytes/s at which one GPU can send to the others of its machine, over all its links, in one
    direction, as NVIDIA states it: half of a bidirectional figure, before protocol overhead."""
    network_gbs: float | None = None
    """Rate in 10^9 bytes/s between two machines, per machine and direction; None for one machine."""
    host_known: bool = True
    """Whether `cpu_cores` and `host_memory_gib` are measured; assumptions must not decide anything."""
    reasons: tuple[str, ...] = ()
    """Sentences on everything that was found out or assumed, one each."""

    @classmethod
    def detect(cls, environ: Mapping[str, str] = os.environ) -> Hardware:
        """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, their links, and its cores and memory.

        Needs no GPU, no torch and no CUDA context; never raises for what NVML can't say.
        """
        return cls(**detect_hardware(environ))

    @classmethod
    def parse(cls, text: str, *, network_gbs: float | None = None) -> Hardware:
        """Hardware elsewhere: `2xT4`, `8xH100-80GB`, `4x4090`, `2x8xH100` (machines × GPUs), `cpu`, `cpu:16` (cores).

        Counts as others write them are read too (`T4 x2`, `H100:8`, `8 H100s`, `2 nodes of 8xH100`), and `kaggle` and
        `colab`. Cards come from `gpu_table.CARDS`, by a name as users type it or NVML reports it; case, spaces and `×`
        are free. A card of several memory sizes is taken as its smallest. Another card is described by its memory,
        bandwidth and dense fp16 rate with fp32 accumulation (`2x24GB,1008GB/s,165TFLOPS`), one MIG instance by its
        profile (`A100-40GB MIG 3g.20gb`). Assumed, and said in `reasons`: cores and host memory (`host_known` is
        False), no NVLink bridge, 12.5 GB/s (100 Gbit/s) between machines unless `network_gbs` is given. Raises
        `ConfigError` with key `hardware` for what is not understood, and for GPUs of several kinds.
        """
        return cls(**parse(text, network_gbs))

    def to_dict(self) -> dict[str, Any]:
        """Return everything known, with the cards' rates, as JSON-serialisable values."""
        values = asdict(self)
        rates = ("mig", "has_bf16", "bf16_tflops", "fp16_tflops", "bandwidth_gbs")
        values["devices"] = [
            {**asdict(device), **{rate: getattr(device, rate) for rate in rates}} for device in self.devices
        ]
        for device in values["devices"]:
            device["compute_capability"] = list(device["compute_capability"])
            device["instance"] = device["instance"] and list(device["instance"])
        values["reasons"] = list(self.reasons)
        return values

    def __str__(self) -> str:
        machines = f"{self.num_machines} machines of " if self.num_machines > 1 else ""
        if not self.devices:
            return f"{machines}CPU, {counted(self.cpu_cores, 'core')}, {self.host_memory_gib:.0f} GiB ({self.reason})"
        kinds = Counter((device.name, f"{device.memory_gib:.0f} GiB") for device in self.devices)
        gpus = " + ".join(f"{count} × {name}, {memory} each" for (name, memory), count in kinds.items())
        return f"{machines}{gpus} ({self.reason})"
