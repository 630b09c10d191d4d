"""Card: one kind of GPU, with its memory, rates and links."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One kind of GPU."""

    model: str
    variant: str
    """Form factor or edition, where a model comes in several."""
    memory_gb: int
    """Nominal memory in GB, as in the card's name; 0 for a card that is described by its figures, as its name does."""
    memory_mib: int
    """MiB that NVML reports as total."""
    tflops: float
    """Dense fp16 (and bf16, where the card has it) with fp32 accumulation, 10^12 operations/s."""
    bandwidth_gbs: float
    """Memory bandwidth, 10^9 bytes/s."""
    capability: tuple[int, int]
    nvlink_gbs: float
    """NVLink bandwidth per GPU, both directions together, 10^9 bytes/s; 0 without NVLink."""
    pcie: tuple[int, int]
    """PCIe generation and number of lanes."""
    source: str
    also: tuple[str, ...] = ()
    """Other names that users or NVML give it."""
    bridge: bool = False
    """Whether NVLink needs a bridge, which joins two cards (H200 NVL: up to four) and may be absent."""
    shared: bool = False
    """Whether it has no memory of its own and takes the host's."""
    derived: bool = False
    """Whether `tflops` is computed from other figures of the source."""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.variant, f"{self.memory_gb}GB" if self.memory_gb else "")))

    @property
    def aliases(self) -> tuple[str, ...]:
        """All names of the card, without a memory size."""
        names = {self.model, f"{self.model} {self.variant}".strip(), *self.also}
        return tuple(sorted(names | {name.removeprefix("RTX ") for name in names}))

    @property
    def memory_gib(self) -> float:
        return self.memory_mib / 1024

    @property
    def fp16_tflops(self) -> float:
        return self.tflops

    @property
    def bf16_tflops(self) -> float | None:
        return self.tflops if self.capability >= (8, 0) else None

    @property
    def pcie_gbs(self) -> float:
        """PCIe bandwidth in one direction, 10^9 bytes/s."""
        return pcie_gbs(*self.pcie)


def pcie_gbs(generation: int, lanes: int) -> float:
    """Return GB/s in one direction, rounded as NVIDIA states it: 16 for generation 3 × 16 lanes, each later one twice.

    Raises `ValueError` below generation 1.
    """
    if generation < 1:
        raise ValueError(f"there is no PCIe generation {generation}")
    return lanes * 0.25 * 2.0 ** (generation - 1)
