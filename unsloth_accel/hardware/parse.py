"""Parsing of hardware elsewhere, from a text such as `2x8xH100-80GB`."""

from __future__ import annotations

import re
from typing import Any

from ..errors import ConfigError, Problem
from .device import Device, Link
from .gpu_table import CARDS, Card, cards_named, similar

MOST_GPUS = 64
"""Most GPUs in one machine. The largest that are sold hold 16; more is taken for a typing error."""
MOST_MACHINES = 4096
CORES_PER_GPU = 8
CPU_CORES = 8
GIB_PER_CORE = 4
NETWORK_GBS = 12.5
"""Bandwidth of 100 Gbit/s Ethernet, in 10^9 bytes/s."""

_COUNTED = re.compile(r"(?:([-+]?[\d.]+)\s*x\s*)?(?:([-+]?[\d.]+)\s*x\s*)?(.*)", re.IGNORECASE)
_CPU = re.compile(r"cpu(?:\s*:\s*([-+]?[\d.]+))?", re.IGNORECASE)
_FORMS = "write a count and a card such as 8xH100-80GB, machines before it such as 2x8xH100-80GB, or cpu:16"


def parse(text: str, network_gbs: float | None = None) -> dict[str, Any]:
    """The fields of `Hardware` for `text`; see `Hardware.parse`."""
    clean = text.replace("×", "x").strip()
    cpu = _CPU.fullmatch(clean)
    if cpu:
        return _cpu(text, cpu[1])
    counted = _COUNTED.fullmatch(clean)
    if not counted or not counted[3]:
        raise _error(text, "it names no card.", _FORMS)
    first, second, name = counted.groups()
    machines, gpus = (first, second) if second else ("1", first or "1")
    num_machines = _count(text, machines, "machines", MOST_MACHINES)
    count = _count(text, gpus, "GPUs in one machine", MOST_GPUS)
    card, reasons = _card(text, name)
    link, link_gbs, why = _link(card, count)
    network, network_why = _network(num_machines, network_gbs)
    devices = [
        Device(name=card.name, index=i, memory_gib=card.memory_gib, compute_capability=card.capability)
        for i in range(count)
    ]
    cores = CORES_PER_GPU * count
    host = 2 * card.memory_gib * count
    return {
        "devices": tuple(devices),
        "cpu_cores": cores,
        "host_memory_gib": host,
        "reason": f"hardware={text.strip()}",
        "num_machines": num_machines,
        "link": link,
        "link_gbs": link_gbs,
        "network_gbs": network,
        "host_known": False,
        "reasons": (
            f"{card.name}: {card.memory_gib:.1f} GiB and rates from {card.source}.",
            *reasons,
            *why,
            *network_why,
            f"{cores} cores per machine: assumed, {CORES_PER_GPU} per GPU.",
            f"{host:.0f} GiB of host memory per machine: assumed, twice the GPUs' memory.",
        ),
    }


def _cpu(text: str, cores: str | None) -> dict[str, Any]:
    count = CPU_CORES if cores is None else _count(text, cores, "cores", 4096)
    return {
        "cpu_cores": count,
        "host_memory_gib": GIB_PER_CORE * count,
        "reason": f"hardware={text.strip()}",
        "host_known": False,
        "reasons": (
            f"{count} cores: {'assumed; cpu:16 says 16' if cores is None else 'as asked'}.",
            f"{GIB_PER_CORE * count} GiB of host memory: assumed, {GIB_PER_CORE} per core.",
            "no bfloat16 on the CPU: assumed, since older ones lack it.",
        ),
    }


def _count(text: str, number: str, what: str, most: int) -> int:
    count = int(number) if re.fullmatch(r"\+?\d{1,9}", number) else 0
    if 1 <= count <= most:
        return count
    consequence = f"{number} {what} can't be planned for: it takes a whole number from 1 to {most}."
    raise _error(text, consequence, _FORMS)


def _card(text: str, name: str) -> tuple[Card, list[str]]:
    named, size = cards_named(name)
    if not named:
        near = similar(name)
        known = dict.fromkeys(card.model for card in CARDS)
        fix = f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(known)}; {_FORMS}."
        raise _error(text, f"no card is known as {name.strip()!r}.", fix)
    sizes = sorted({card.memory_gb for card in named})
    fitting = [card for card in named if size in (None, card.memory_gb)]
    if not fitting:
        nearest = min(named, key=lambda card: abs(card.memory_gb - (size or 0)))
        consequence = f"no {named[0].model} has {size} GB; it comes with {' or '.join(map(str, sizes))} GB."
        raise _error(text, consequence, f"hardware={nearest.name}")
    card, *others = fitting
    if not others:
        return card, []
    rest = " or ".join(other.name for other in others)
    return card, [f"{name.strip()} is taken as {card.name}; it could also be {rest}: write that if it is."]


def _link(card: Card, count: int) -> tuple[Link | None, float | None, list[str]]:
    if count == 1:
        return None, None, []
    if card.nvlink_gbs and not card.bridge:
        gbs = card.nvlink_gbs / 2
        return "nvlink", gbs, [f"link nvlink: {card.name} has it, {gbs:g} GB/s per GPU and direction."]
    bridge = "; an NVLink bridge between cards is not assumed" if card.bridge else ""
    generation, lanes = card.pcie
    how = f"PCIe {generation} × {lanes}, {card.pcie_gbs:g} GB/s per direction"
    return "pcie", card.pcie_gbs, [f"link pcie: {card.name} has {how}{bridge}."]


def _network(num_machines: int, given: float | None) -> tuple[float | None, list[str]]:
    if num_machines == 1:
        return None, []
    if given is not None:
        return given, [f"network {given:g} GB/s: as given."]
    return NETWORK_GBS, [f"network {NETWORK_GBS:g} GB/s between machines: assumed, 100 Gbit/s Ethernet."]


def _error(text: str, consequence: str, fix: str) -> ConfigError:
    return ConfigError(Problem(key="hardware", value=text, consequence=consequence, fix=fix))
