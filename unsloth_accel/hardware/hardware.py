"""Hardware: the GPUs and cores that a run may use, found without torch and without a CUDA context."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from .gpu_table import Card, card_of

if TYPE_CHECKING:
    from .nvml import Machine

Link = Literal["nvlink", "pcie"]

_NO_MIG_LINK = "no link between GPUs: MIG instances have neither NVLink nor PCIe access to one another."


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
    """GiB that nobody used when it was looked at; None for hardware elsewhere."""
    parent: str = ""
    """For a MIG instance, its GPU."""
    instance: tuple[int, int] | None = None
    """For a MIG instance, its GPU instance and compute instance, as drivers before 470 name it."""

    @property
    def mig(self) -> bool:
        """It is a MIG instance of the GPU `parent`."""
        return bool(self.parent)

    @property
    def card(self) -> Card | None:
        """Its row of the card table; None for an unknown card, and for a MIG instance, which is only a part of one."""
        return None if self.mig else card_of(self.name, self.memory_gib)

    @property
    def has_bf16(self) -> bool:
        """Its tensor cores multiply bfloat16."""
        return self.compute_capability >= (8, 0)

    @property
    def bf16_tflops(self) -> float | None:
        """Dense with fp32 accumulation, 10^12 operations/s (`cards.Card.tflops`); None without bf16 or unknown."""
        return self.card.bf16_tflops if self.card else None

    @property
    def fp16_tflops(self) -> float | None:
        """Dense with fp32 accumulation, 10^12 operations/s; None for an unknown card."""
        return self.card.fp16_tflops if self.card else None

    @property
    def bandwidth_gbs(self) -> float | None:
        """Of its memory, 10^9 bytes/s; None for an unknown card."""
        return self.card.bandwidth_gbs if self.card else None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one machine offers, and how many such machines there are."""

    devices: tuple[Device, ...] = ()
    """Of one machine; they may differ from one another."""
    cpu_cores: int
    """Cores this process may run on, at least 1; of one machine."""
    host_memory_gib: float
    """GiB of one machine that this process may use."""
    cpu_bf16: bool = False
    """The CPU multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    reason: str = ""
    """How the GPUs were found, or why there are none."""
    num_machines: int = 1
    """All alike."""
    link: Link | None = None
    """The slowest way between two GPUs of one machine; None when there are no two, or nobody knows."""
    link_gbs: float | None = None
    """10^9 bytes/s that one GPU can send to the others of its machine, over all its links, in one direction, as NVIDIA
    states it: half of a bidirectional figure, before protocol overhead."""
    network_gbs: float | None = None
    """10^9 bytes/s between two machines, per machine and direction; None for one machine."""
    host_known: bool = True
    """False when `cpu_cores` and `host_memory_gib` are assumptions, which must not decide anything."""
    reasons: tuple[str, ...] = ()
    """One sentence for everything that was found out or assumed."""

    @classmethod
    def detect(cls, environ: Mapping[str, str] = os.environ) -> Hardware:
        """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, their links, and its cores and memory.

        Needs no GPU, no torch and no CUDA context; never raises for what NVML can't say.
        """
        from . import cpu_and_memory, nvml

        memory, memory_why = cpu_and_memory.memory_gib()
        cores, cores_why = cpu_and_memory.cores()
        bf16, bf16_why = cpu_and_memory.bf16()
        machine = nvml.look(memory)
        chosen = environ.get("CUDA_VISIBLE_DEVICES")
        visible, reason = _visible(machine.devices, machine.reason, chosen)
        devices, mig = _one_instance(visible)
        link, link_gbs, link_why = _link(machine, devices)
        ordered = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        reasons = (
            f"{len(devices)} of {len(machine.devices)} GPUs: {reason}.",
            *machine.notes,
            *mig,
            *([] if ordered else _order(machine.devices, chosen)),
            *link_why,
            f"{cores} cores: {cores_why}.",
            f"{memory:.0f} GiB of host memory: {memory_why}.",
            f"{'bfloat16' if bf16 else 'no bfloat16'} on the CPU: {bf16_why}.",
        )
        return cls(
            devices=devices,
            cpu_cores=cores,
            host_memory_gib=memory,
            cpu_bf16=bf16,
            reason=reason,
            link=link,
            link_gbs=link_gbs,
            reasons=reasons,
        )

    @classmethod
    def parse(cls, text: str, *, network_gbs: float | None = None) -> Hardware:
        """Hardware elsewhere: `2xT4`, `8xH100-80GB`, `4x4090`, `2x8xH100` (machines × GPUs), `cpu`, `cpu:16` (cores).

        Cards come from `cards.CARDS`, by a name as users type it or NVML reports it; case, spaces and `×` are free.
        A card of several memory sizes is taken as its smallest. Assumed, and said in `reasons`: cores and host memory
        (`host_known` is False), no NVLink bridge, 12.5 GB/s (100 Gbit/s) between machines unless `network_gbs` is
        given. Raises `ConfigError` with key `hardware` for what is not understood.
        """
        from .parse import parse

        return parse(text, network_gbs)

    def to_dict(self) -> dict[str, Any]:
        """Everything known, with the cards' rates, as JSON can hold it."""
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
            return f"{machines}CPU, {self.cpu_cores} cores, {self.host_memory_gib:.0f} GiB ({self.reason})"
        kinds = Counter((device.name, f"{device.memory_gib:.0f} GiB") for device in self.devices)
        gpus = " + ".join(f"{count} × {name}, {memory} each" for (name, memory), count in kinds.items())
        return f"{machines}{gpus} ({self.reason})"


def detect(environ: Mapping[str, str] = os.environ) -> Hardware:
    """`Hardware.detect`."""
    return Hardware.detect(environ)


def _visible(found: Sequence[Device], reason: str, chosen: str | None) -> tuple[tuple[Device, ...], str]:
    """Choose from `found` as CUDA does: indices or UUIDs, up to the first that names no GPU.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars
    """
    if chosen is None or not found:
        return tuple(found), reason
    devices: list[Device] = []
    for token in filter(None, (token.strip() for token in chosen.split(","))):
        named = [device for device in found if _names(token, device)]
        # A GPU in MIG mode stands for the first of its instances.
        if len({device.index for device in named}) != 1 or named[0] in devices:
            break
        devices.append(named[0])
    return tuple(devices), f"{reason}, CUDA_VISIBLE_DEVICES={chosen}"


def _names(token: str, device: Device) -> bool:
    if token.startswith("MIG-"):
        gi_ci = "/".join(map(str, device.instance or ()))
        return device.mig and token in (device.uuid, f"MIG-{device.parent}/{gi_ci}")
    whole = device.parent or device.uuid
    return token == str(device.index) or (token.startswith("GPU-") and whole.startswith(token))


def _one_instance(visible: tuple[Device, ...]) -> tuple[tuple[Device, ...], list[str]]:
    """Keep one MIG instance where there are any: more of them can't train together.

    Drivers before 570 show a process one instance and then no whole GPU; later ones show one per GPU instance, but NCCL
    refuses two ranks on one GPU and MIG has no peer access.
    https://docs.nvidia.com/datacenter/tesla/mig-user-guide/ , https://github.com/NVIDIA/nccl/issues/1716
    """
    instances = [device for device in visible if device.mig]
    if not instances:
        return visible, []
    left = len(visible) - 1
    reason = f"one MIG instance, {instances[0].name}: a CUDA process uses only one"
    more = f", so {left} more visible device{'s are' if left > 1 else ' is'} left for other runs" if left else ""
    return (instances[0],), [f"{reason}{more}."]


def _order(found: tuple[Device, ...], chosen: str | None) -> list[str]:
    """A warning where CUDA may count otherwise than NVML: unless told, it puts the fastest card first."""
    if chosen is None or not any(token.strip().isdigit() for token in chosen.split(",")):
        return []
    if len({device.name for device in found}) < 2:
        return []
    return [
        f"CUDA_VISIBLE_DEVICES={chosen} is read in PCI order, and CUDA counts different cards fastest first: set "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID or name the GPUs by UUID."
    ]


def _link(machine: Machine, devices: tuple[Device, ...]) -> tuple[Link | None, float | None, list[str]]:
    if any(device.mig for device in devices):
        return None, None, [_NO_MIG_LINK]
    indices = sorted(device.index for device in devices)
    pairs = {(one, other) for one in indices for other in indices if one < other}
    if not pairs:
        return None, None, []
    joined = pairs & machine.joined
    if joined == pairs:
        nvlink = [machine.nvlink_gbs.get(index) or _stated_nvlink(devices, index) for index in indices]
        known = [gbs for gbs in nvlink if gbs]
        slowest = min(known) if len(known) == len(nvlink) else None
        speed = f"{slowest:g} GB/s per GPU and direction" if slowest else "at a speed NVML doesn't state"
        return "nvlink", slowest, [f"link nvlink: NVML says that it joins every pair of GPUs, {speed}."]
    pcie = [machine.pcie_gbs[index] for index in indices if index in machine.pcie_gbs]
    slowest = min(pcie) if len(pcie) == len(indices) else None
    speed = f"{slowest:g} GB/s per direction" if slowest else "at a speed NVML doesn't state"
    some = f"NVLink joins only {len(joined)} of {len(pairs)} pairs, and the slowest sets the pace" if joined else ""
    return "pcie", slowest, [f"link pcie: {some or 'NVML knows no NVLink between the GPUs'}, {speed}."]


def _stated_nvlink(devices: tuple[Device, ...], index: int) -> float | None:
    card = next(device.card for device in devices if device.index == index)
    return card.nvlink_gbs / 2 if card and card.nvlink_gbs else None
