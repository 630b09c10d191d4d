"""Detection of this machine: the GPUs that CUDA_VISIBLE_DEVICES leaves visible, their links, cores and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import counted
from . import cpu_and_memory, nvml
from .device import Device, Link
from .nvml import NvmlAnswers

_NO_MIG_LINK = "no link between GPUs: MIG instances have neither NVLink nor PCIe access to one another."


def detect_hardware(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `Hardware`, as they are found here; see `Hardware.detect`."""
    memory, memory_why = cpu_and_memory.memory_gib()
    cores, cores_why = cpu_and_memory.cores()
    bf16, bf16_why = cpu_and_memory.bf16()
    machine = nvml.ask_nvml(memory)
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
        f"{counted(cores, 'core')}: {cores_why}.",
        f"{memory:.0f} GiB of host memory: {memory_why}.",
        f"{'bfloat16' if bf16 else 'no bfloat16'} on the CPU: {bf16_why}.",
    )
    return {
        "devices": devices,
        "cpu_cores": cores,
        "host_memory_gib": memory,
        "cpu_bf16": bf16,
        "reason": reason,
        "link": link,
        "link_gbs": link_gbs,
        "reasons": reasons,
    }


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
    """Return a warning if CUDA may count otherwise than NVML: by default it puts the fastest card first."""
    if chosen is None or not any(token.strip().isdigit() for token in chosen.split(",")):
        return []
    if len({device.name for device in found}) < 2:
        return []
    return [
        f"CUDA_VISIBLE_DEVICES={chosen} is read in PCI order, and CUDA counts different cards fastest first: set "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID or name the GPUs by UUID."
    ]


def _link(machine: NvmlAnswers, devices: tuple[Device, ...]) -> tuple[Link | None, float | None, list[str]]:
    if any(device.mig for device in devices):
        return None, None, [_NO_MIG_LINK]
    indices = sorted(device.index for device in devices)
    pairs = {(one, other) for one in indices for other in indices if one < other}
    if not pairs:
        return None, None, []
    joined = pairs & machine.joined
    if joined == pairs:
        slowest = _slowest([machine.nvlink_gbs.get(index) or _stated_nvlink(devices, index) for index in indices])
        speed = f"{slowest:g} GB/s per GPU and direction" if slowest else "at a speed NVML doesn't state"
        return "nvlink", slowest, [f"link nvlink: NVML says that it joins every pair of GPUs, {speed}."]
    slowest = _slowest([machine.pcie_gbs.get(index) for index in indices])
    speed = f"{slowest:g} GB/s per direction" if slowest else "at a speed NVML doesn't state"
    some = f"NVLink joins only {len(joined)} of {len(pairs)} pairs, and the slowest sets the pace" if joined else ""
    return "pcie", slowest, [f"link pcie: {some or 'NVML knows no NVLink between the GPUs'}, {speed}."]


def _slowest(rates: list[float | None]) -> float | None:
    """Return the lowest of `rates`, or None if one of them is unknown."""
    return min(rate or 0.0 for rate in rates) or None


def _stated_nvlink(devices: tuple[Device, ...], index: int) -> float | None:
    card = next(device.card for device in devices if device.index == index)
    return card.nvlink_gbs / 2 if card and card.nvlink_gbs else None
