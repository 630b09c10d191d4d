"""Parsing of hardware elsewhere, from a text such as `2x8xH100-80GB`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, Problem, counted
from .card import Card
from .counts import kinds, read_counts, singular, uncounted
from .device import Device, Link
from .gpu_table import CARDS, cards_named, similar
from .mig_slice import SHARE, USUAL, Slice, slice_of, smallest
from .own_card import figures

MOST_GPUS = 64
"""Most GPUs in one machine. The largest that are sold hold 16; more is taken for a typing error."""
MOST_MACHINES = 4096
CORES_PER_GPU = 8
CPU_CORES = 8
GIB_PER_CORE = 4
NETWORK_GBS = 12.5
"""Bandwidth of 100 Gbit/s Ethernet, in 10^9 bytes/s."""

LONGEST = 200
"""Characters of the longest text that is read."""

_PLACE = re.compile(
    r"(?:google\s+)?(kaggle|colab)\b[\s:]*(?:(?:free|pro\+?|notebooks?)(?=\s|$))?\s*(.*)", re.IGNORECASE | re.DOTALL
)
_CPU = re.compile(r"cpu(?:\s*[:x\s]\s*([-+]?[\d.]+))?", re.IGNORECASE)
_OWN = "24GB,1008GB/s,165TFLOPS"
_FORMS = (
    "write a count and a card such as 8xH100-80GB, machines before it such as 2x8xH100-80GB, or cpu:16; a card's own "
    f"memory, bandwidth and dense fp16 rate do too: 2x{_OWN}"
)


@dataclass(frozen=True)
class _Place:
    """Where notebooks run without charge."""

    gpus: str
    others: tuple[str, ...]
    cores: int
    memory_gib: int


_PLACES = {
    # https://www.kaggle.com/docs/notebooks, Technical Specifications
    "kaggle": _Place("2xT4", ("P100 PCIe",), 4, 29),
    # Colab promises nothing: what its machines without charge have had. https://research.google.com/colaboratory/faq.html
    "colab": _Place("T4", ("L4", "A100"), 2, 12),
}


def parse(text: str, network_gbs: float | None = None) -> dict[str, Any]:
    """The fields of `Hardware` for `text`; see `Hardware.parse`."""
    if len(text) > LONGEST:
        raise _error(f"{text[:40]}…", f"it has {len(text)} characters.", _FORMS)
    clean = text.replace("×", "x").replace("*", "x").strip()
    cpu = _CPU.fullmatch(clean)
    if cpu:
        return _cpu(text, cpu[1])
    place, place_why = None, list[str]()
    if found := _PLACE.fullmatch(clean):
        clean = found[2]
        if not clean:
            place, name = _PLACES[found[1].lower()], found[1]
            clean = place.gpus
            others = " or ".join(f"{name} {other}" for other in place.others)
            place_why = [f"{name} is taken as {clean}; it also has {' and '.join(place.others)}: write {others} then."]
    if len(several := kinds(clean)) > 1:
        raise _several(text, several)
    machines, gpus, name = read_counts(clean)
    if not name:
        raise _error(text, "it names no card.", _FORMS)
    num_machines = _count(text, machines, "machines", MOST_MACHINES)
    count = _count(text, gpus, "GPUs in one machine", MOST_GPUS)
    part = slice_of(name)
    if part:
        card, reasons = _divided(text, part)
        devices = _instance(text, card, part, count * num_machines)
    else:
        card, reasons = _card(text, name)
        devices = tuple(
            Device(name=card.name, index=i, memory_gib=card.memory_gib, compute_capability=card.capability)
            for i in range(count)
        )
    link, link_gbs, why = _link(card, count)
    network, network_why = _network(num_machines, network_gbs)
    if place:
        cores, host, whose = place.cores, float(place.memory_gib), "what machines without charge have there"
    elif card.shared:
        cores, host, whose = CORES_PER_GPU * count, card.memory_gib * count, "the memory that its GPU shares"
    else:
        cores, host, whose = CORES_PER_GPU * count, 2 * devices[0].memory_gib * count, "twice the memory of its GPUs"
    return {
        "devices": devices,
        "cpu_cores": cores,
        "host_memory_gib": host,
        "reason": f"hardware={text.strip()}",
        "num_machines": num_machines,
        "link": link,
        "link_gbs": link_gbs,
        "network_gbs": network,
        "host_known": False,
        "reasons": (
            *place_why,
            *reasons,
            *why,
            *network_why,
            f"{counted(cores, 'core')} per machine: assumed, {whose if place else f'{CORES_PER_GPU} per GPU'}.",
            f"{host:.0f} GiB of host memory per machine: assumed, {whose}.",
        ),
    }


def _several(text: str, found: list[str]) -> ConfigError:
    consequence = (
        "several kinds of GPU in one run can't be planned for: every step waits for the slowest, and the smallest "
        "memory sets the batch."
    )
    offered = " or ".join(f"hardware={kind}" for kind in found)
    fix = f"plan for one kind: {offered}; CUDA_VISIBLE_DEVICES gives the run the GPUs of one kind"
    return _error(text, consequence, fix)


def _cpu(text: str, cores: str | None) -> dict[str, Any]:
    count = CPU_CORES if cores is None else _count(text, cores, "cores", 4096)
    return {
        "cpu_cores": count,
        "host_memory_gib": GIB_PER_CORE * count,
        "reason": f"hardware={text.strip()}",
        "host_known": False,
        "reasons": (
            f"{counted(count, 'core')}: {'assumed; cpu:16 says 16' if cores is None else 'as asked'}.",
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
    """The card that `name` stands for, and where it comes from and what else it could be."""
    named, size = cards_named(name)
    if not named:
        named, size = cards_named(singular(name))
    if not named:
        raise _unknown(text, name)
    sizes = sorted({card.memory_gb for card in named})
    fitting = [card for card in named if size in (None, card.memory_gb)]
    if not fitting:
        nearest = min(named, key=lambda card: abs(card.memory_gb - (size or 0)))
        consequence = f"no {named[0].model} has {size} GB; it comes with {' or '.join(map(str, sizes))} GB."
        own = f"{size}GB,{nearest.bandwidth_gbs:g}GB/s,{nearest.tflops:g}TFLOPS"
        own += "" if nearest.capability >= (8, 0) else ",sm" + "".join(map(str, nearest.capability))
        fix = f"hardware={nearest.name}; one that was altered is described by its own figures: hardware={own}"
        raise _error(text, consequence, fix)
    card, *others = fitting
    why = [f"{card.name}: {card.memory_gib:.1f} GiB and rates from {card.source}."]
    if not card.memory_gb and "sm" not in card.name:
        why.append("bfloat16: assumed; for a card without it write its compute capability too, such as sm75.")
    if others:
        rest = " or ".join(other.name for other in others)
        why.append(f"{name.strip()} is taken as {card.name}; it could also be {rest}: write that if it is.")
    return card, why


def _unknown(text: str, name: str) -> ConfigError:
    if found := figures(name):
        missing = [key for key in ("memory", "bandwidth", "rate") if key not in found]
        said = f"it says no {' and no '.join(missing)}" if missing else "its figures are no GPU's"
        return _error(text, f"{said}.", f"memory, bandwidth and dense fp16 rate of one GPU, as in 2x{_OWN}")
    if near := similar(name) or similar(uncounted(name)):
        fix = f"did you mean {' or '.join(near)}? Another card is described by its own figures: {_OWN}"
    else:
        models = dict.fromkeys(card.model for card in CARDS if not card.model.endswith("Laptop"))
        fix = f"one of: {', '.join(models)}, RTX 3060 to 5090 Laptop; {_FORMS}."
    return _error(text, f"no card is known as {name.strip()!r}.", fix)


def _divided(text: str, part: Slice) -> tuple[Card, list[str]]:
    """The card that `part` is a slice of."""
    name = part.of or USUAL
    named, size = cards_named(name)
    if not named:
        raise _unknown(text, name)
    of_size = [card for card in named if size in (None, card.memory_gb)] or list(named)
    fitting = [card for card in of_size if part.fits(card)]
    if not fitting:
        offered = smallest(of_size[0])
        consequence = f"{of_size[0].name} has no instance {part.name}" if offered else f"{name} can't be divided"
        raise _error(text, f"{consequence}.", f"hardware={offered or of_size[0].name}")
    card = fitting[0]
    memory = f"{SHARE * part.memory_gb:.1f} GiB, {SHARE:.0%} of what its name says"
    why = f"{card.name} {part.name}: {memory}; its rates are unknown."
    assumed = [] if part.of else [f"{part.name} is taken as a slice of {card.name}; write the GPU before it."]
    return card, [why, *assumed]


def _instance(text: str, card: Card, part: Slice, count: int) -> tuple[Device, ...]:
    """The one device that a slice is; refuses more of them."""
    name = f"{card.name} {part.name}"
    if count > 1:
        consequence = "MIG instances can't train together: CUDA shows a process one, and NCCL takes no GPU twice."
        raise _error(text, consequence, f"hardware={name}")
    memory = SHARE * part.memory_gb
    return (Device(name=name, index=0, memory_gib=memory, compute_capability=card.capability, parent=f"a {card.name}"),)


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
