"""Counts of machines and GPUs, as people write them: `2x8xH100`, `T4 x2`, `H100:8`, `8 H100s`, `2 nodes of 8xH100`."""

from __future__ import annotations

import re

from .gpu_table import cards_named
from .mig_slice import slice_of
from .own_card import figures

_COUNTED = re.compile(r"(?:([-+]?[\d.]+)\s*x\s*)?(?:([-+]?[\d.]+)\s*x\s*)?(.*)", re.IGNORECASE | re.DOTALL)
_BEHIND = re.compile(r"(.+?)(?<!rt)(?<!gt)\s*[x:]\s*(\d+)", re.IGNORECASE)
"""A card and a count: `T4 x2`, `H100:8`; not `RTX 4090`."""
_BEFORE = re.compile(r"(\d{1,2})(?:\s+|(?=[a-z]))(.+)", re.IGNORECASE)
"""A count and a card: `8 H100s`."""
_MACHINES = re.compile(r"(\d+)\s*(?:nodes?|machines?|hosts?|servers?)\s*(?:of|with|x|,)?\s*(.+)", re.IGNORECASE)
_SEVERAL = re.compile(r"\s*(?:[+&;,]|\band\b)\s*|\s+(?=\d+\s*x\s*\S)", re.IGNORECASE)
"""What stands between the cards of a machine that has several kinds."""
_PLURAL = re.compile(r"(?<=\w)s\b", re.IGNORECASE)


def kinds(text: str) -> list[str]:
    """The parts of `text` that name different kinds of GPU, each with its count; fewer than two where it names one."""
    if figures(_COUNTED.sub(r"\3", text, count=1)) or slice_of(text):
        return []
    parts = ((part, read_counts(part)[2]) for part in _SEVERAL.split(text) if part)
    return list({cards_named(singular(name))[0]: part for part, name in parts if _known(name)}.values())


def read_counts(text: str) -> tuple[str, str, str]:
    """Return the machines, the GPUs of each and the card that `text` names, as they are written."""
    if _known(text):
        return "1", "1", text
    if (nodes := _MACHINES.fullmatch(text)) and not _MACHINES.fullmatch(nodes[2]):
        machines, gpus, name = read_counts(nodes[2])
        if machines == "1":
            return nodes[1], gpus, name
    if (behind := _BEHIND.fullmatch(text)) and _known(behind[1]):
        return "1", behind[2], behind[1]
    found = _COUNTED.fullmatch(text)
    first, second, name = found.groups() if found else (None, None, text)
    if not second and not _known(name) and (before := _BEFORE.fullmatch(name)) and _known(before[2]):
        first, second, name = (first, before[1], before[2]) if first else (before[1], None, before[2])
    return (first or "1", second, name) if second else ("1", first or "1", name)


def _known(name: str) -> bool:
    if part := slice_of(name):
        return not part.of or bool(cards_named(part.of)[0])
    return bool(cards_named(name)[0] or cards_named(singular(name))[0])


def singular(name: str) -> str:
    """Return `H100` for `H100s`."""
    return _PLURAL.sub("", name)


def uncounted(name: str) -> str:
    """Return `name` without what may be a count before or behind it."""
    return _BEHIND.sub(r"\1", _BEFORE.sub(r"\2", name.strip()))
