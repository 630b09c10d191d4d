"""Device: one GPU, as this machine or a table of cards describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .card import Card
from .gpu_table import card_of

Link = Literal["nvlink", "pcie"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU, or one MIG instance of a GPU."""

    name: str
    index: int
    """Number among this machine's GPUs, in PCI order, as NVML and CUDA_DEVICE_ORDER=PCI_BUS_ID count them."""
    memory_gib: float
    """GiB that NVML reports as total; a CUDA context and other processes take some of it."""
    compute_capability: tuple[int, int]
    uuid: str = ""
    """`GPU-…` or `MIG-…`: names the GPU whatever order CUDA counts in."""
    memory_free_gib: float | None = None
    """Free memory in GiB when detected; None for hardware elsewhere."""
    parent: str = ""
    """GPU that a MIG instance is part of; empty for a whole GPU."""
    instance: tuple[int, int] | None = None
    """GPU instance and compute instance of a MIG instance, as drivers before 470 name it."""

    @property
    def mig(self) -> bool:
        """Whether it is a MIG instance of the GPU `parent`."""
        return bool(self.parent)

    @property
    def card(self) -> Card | None:
        """Row of the card table; None for an unknown card, and for a MIG instance, which is only a part of one."""
        return None if self.mig else card_of(self.name, self.memory_gib)

    @property
    def has_bf16(self) -> bool:
        """Whether its tensor cores multiply bfloat16."""
        return self.compute_capability >= (8, 0)

    @property
    def bf16_tflops(self) -> float | None:
        """Dense bf16 rate with fp32 accumulation, 10^12 operations/s; None without bf16 and for an unknown card."""
        return self.card.bf16_tflops if self.card else None

    @property
    def fp16_tflops(self) -> float | None:
        """Dense fp16 rate with fp32 accumulation, 10^12 operations/s; None for an unknown card."""
        return self.card.fp16_tflops if self.card else None

    @property
    def bandwidth_gbs(self) -> float | None:
        """Memory bandwidth, 10^9 bytes/s; None for an unknown card."""
        return self.card.bandwidth_gbs if self.card else None
