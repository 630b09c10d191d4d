"""Checks of the GPUs and of what lies between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from ..errors import counted
from ..strategies import usual
from .machine import Link, Machine
from .result import Result, warning

BUSY_GIB = 1.0
"""GiB in use above which a GPU is busy; an idle GPU's driver holds less."""
RTX40 = "accelerate 1.15, utils/environment.py: check_cuda_p2p_ib_support"


def gpus(machine: Machine) -> Iterator[Result]:
    """Visible GPUs, and what others hold of each."""
    hardware, nvml = machine.hardware, machine.nvml
    if not hardware.devices:
        hidden = len(nvml.uuids)
        detail = f"{counted(hidden, 'GPU')}, none visible" if hidden else "none"
        yield Result(name="GPUs", detail=f"{detail} ({hardware.reason}): runs train on the CPU")
        return
    for device in hardware.devices:
        free = device.memory_gib if device.memory_free_gib is None else device.memory_free_gib
        used = device.memory_gib - free
        capability = ".".join(map(str, device.compute_capability))
        detail = f"{device.name}, {device.memory_gib:.0f} GiB, {free:.0f} free, sm {capability}"
        if used < BUSY_GIB:
            yield Result(name=f"GPU {device.index}", detail=detail)
            continue
        holders = nvml.processes.get(device.parent or device.uuid, ())
        who = f"by process {', '.join(map(str, holders))}" if holders else "by processes that can't be seen from here"
        fix = f"end what runs there (nvidia-smi shows it), or leave GPU {device.index} out of CUDA_VISIBLE_DEVICES"
        yield warning(f"GPU {device.index}", f"{detail}; {used:.1f} GiB held {who}", fix)


def kinds(machine: Machine) -> Iterator[Result]:
    """GPUs of different kinds: every step waits for the slowest, and the smallest sets the batch."""
    devices = machine.hardware.devices
    found = Counter(f"{device.name} {device.memory_gib:.0f} GiB" for device in devices)
    if len(found) < 2:
        return
    detail = ", ".join(f"{count} × {name}" for name, count in found.items())
    detail += ": the slowest sets the pace of every step, and the smallest memory the batch"
    fix = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=… with the GPUs of one kind"
    reference = "CUDA counts the fastest GPU first unless CUDA_DEVICE_ORDER=PCI_BUS_ID"
    yield warning("GPU kinds", detail, fix, reference)


def links(machine: Machine) -> Iterator[Result]:
    """Links between each pair of visible GPUs."""
    devices = machine.hardware.devices
    by_link: dict[Link, list[str]] = {}
    for one, other in combinations(devices, 2):
        link = machine.nvml.links.get(frozenset((one.uuid, other.uuid)), "unknown")
        by_link.setdefault(link, []).append(f"{one.index}-{other.index}")
    if not by_link:
        return
    detail = "; ".join(f"{link}: {_listed(named, len(by_link))}" for link, named in by_link.items())
    if "host memory" in by_link:
        detail += ": gradients between these go through the CPU's memory"
        whole = f"distributed.strategy={usual(len(devices)).name}"
        advice = f"prefer {whole}, which sends LoRA's gradients only; FSDP sends all weights each step"
        rtx40 = any("RTX 40" in device.name for device in devices)
        if rtx40:
            detail += " (GeForce RTX 40 has no peer access)"
            advice += "; accelerate launch sets NCCL_P2P_DISABLE=1 itself where the driver is older than 550.40.07"
        yield warning("GPU links", detail, advice, RTX40 if rtx40 else "")
    elif len(by_link) > 1:
        fix = "put the GPUs that NVLink joins into one run: CUDA_VISIBLE_DEVICES"
        yield warning("GPU links", f"{detail}: the slowest link sets the pace", fix)
    else:
        yield Result(name="GPU links", detail=detail)


def _listed(pairs: list[str], links: int) -> str:
    if links == 1:
        return "every pair"
    return ", ".join(pairs) if len(pairs) <= 8 else f"{', '.join(pairs[:8])} and {len(pairs) - 8} more"
