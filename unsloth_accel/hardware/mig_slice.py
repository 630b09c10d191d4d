"""MIG slices of hardware elsewhere: `A100-40GB MIG 3g.20gb`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .card import Card

_PROFILE = re.compile(r"(.*?)[\s,:-]*(?:mig[\s:-]*)?\b(\d)g\.(\d{1,3})gb(?:\+me(?:\.all)?)?", re.IGNORECASE)
_MIG = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities of the GPUs that can be divided, beside the RTX PRO 6000."""
_OF_EIGHT = {1: 2, 2: 2, 3: 4, 4: 4, 7: 8}
"""The most eighths of the memory that go with a number of compute slices."""
_OF_FOUR = {1: 1, 2: 2, 4: 4}
"""Quarters of the memory that go with them on GPUs of four slices."""
USUAL = "A100"
"""GPU whose slice is meant where none is named: the first that could be divided, and the slowest."""
SHARE = 0.95
"""Part of the memory in its name that a slice has: nvidia-smi lists 9.5 GiB for an 80 GB A100's 1g.10gb.
https://docs.nvidia.com/datacenter/tesla/mig-user-guide/"""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One MIG instance by its profile."""

    of: str
    """Name of the whole GPU, as written; empty where none is."""
    compute: int
    """Compute slices."""
    memory_gb: int

    @property
    def name(self) -> str:
        return f"MIG {self.compute}g.{self.memory_gb}gb"

    def fits(self, card: Card) -> bool:
        """Whether `card` has instances of this profile."""
        if not (slices := _slices(card)):
            return False
        share = (_OF_FOUR if slices == 4 else _OF_EIGHT).get(self.compute, 0) / slices
        # 71 GB are called the half of an H200's 141.
        return share > 0 and self.memory_gb <= card.memory_gb * share + 1


def slice_of(text: str) -> Slice | None:
    """The slice that `text` names; None for a whole GPU."""
    found = _PROFILE.fullmatch(text.strip())
    return Slice(of=found[1].strip(), compute=int(found[2]), memory_gb=int(found[3])) if found else None


def smallest(card: Card) -> str:
    """Return the name of the smallest slice of `card`; empty where it can't be divided."""
    slices = _slices(card)
    return f"{card.name} MIG 1g.{-(-card.memory_gb // slices)}gb" if slices else ""


def _slices(card: Card) -> int:
    """Return into how many parts the memory of `card` can be divided; 0 if it can't."""
    if card.model == "A30" or card.model.startswith("RTX PRO 6000"):
        return 4
    return 8 if card.capability in _MIG and card.memory_gb else 0
