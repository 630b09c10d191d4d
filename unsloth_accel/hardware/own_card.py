"""Cards that no table knows, described by their figures: `24GB,1008GB/s,165TFLOPS`."""

from __future__ import annotations

import re
from functools import lru_cache

from .card import Card

_FIGURES = {
    "memory": re.compile(r"(\d+(?:\.\d+)?)(gi?b|mi?b)"),
    "bandwidth": re.compile(r"(\d+(?:\.\d+)?)([gt]b)/s"),
    "rate": re.compile(r"(\d+(?:\.\d+)?)([tp]flop)s?(?:/s)?"),
    "capability": re.compile(r"sm_?(\d{1,2})\.?(\d)"),
}
_IN_UNITS = {"gb": 1.0, "gib": 1.0, "mb": 1 / 1024, "mib": 1 / 1024, "tb": 1000.0, "tflop": 1.0, "pflop": 1000.0}


def figures(text: str) -> dict[str, str]:
    """Return the figures that `text` gives of a card of one's own, as they are written, by name.

    Empty where it is no such text: it must hold nothing else, and more than a capability.
    """
    found = {}
    # A figure and its unit may stand apart.
    joined = re.sub(r"(?<=\d)\s+(?=[a-z])|(?<=\bsm)\s+", "", text.strip().lower())
    for word in re.split(r"[,;\s]+", joined):
        name = next((name for name, pattern in _FIGURES.items() if pattern.fullmatch(word)), None)
        if name is None:
            return {}
        found[name] = word
    return found if set(found) - {"capability"} else {}


@lru_cache(maxsize=64)
def described(text: str) -> Card | None:
    """The card that `text` describes by its memory, bandwidth and rate; None where it doesn't, or one is missing.

    Its memory is what nvidia-smi reports, in GB (as 2^30 bytes), GiB or MiB. Without a compute capability it is taken
    as one that has bf16.
    """
    given = figures(text)
    if not {"memory", "bandwidth", "rate"} <= set(given):
        return None
    values = {}
    for name in ("memory", "bandwidth", "rate"):
        match = _FIGURES[name].fullmatch(given[name])
        values[name] = float(match[1]) * _IN_UNITS[match[2]] if match else 0.0
    if not (0.5 <= values["memory"] <= 4096 and 1 <= values["bandwidth"] <= 1e6 and 0.1 <= values["rate"] <= 1e6):
        return None
    capability = _FIGURES["capability"].fullmatch(given.get("capability", "sm80"))
    name = f"{values['memory']:g}GB,{values['bandwidth']:g}GB/s,{values['rate']:g}TFLOPS"
    return Card(
        model=",".join(filter(None, (name, given.get("capability", "")))),
        variant="",
        memory_gb=0,
        memory_mib=round(values["memory"] * 1024),
        tflops=values["rate"],
        bandwidth_gbs=values["bandwidth"],
        capability=(int(capability[1]), int(capability[2])) if capability else (8, 0),
        nvlink_gbs=0,
        pcie=(4, 16),
        source="what is asked",
    )
