"""Memory: what the plan predicted, term by term, above what each rank measured, in the same colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from .figures import Measured
from .numbers import gib, percent
from .run_record import Json, number
from .svg import Bar, Segment, bars

_GROUPS = (
    ("model", "c1", ("weights",)),
    ("adapter", "c3", ("lora", "gradients", "optimizer", "gradient_buckets")),
    ("activations", "c2", ("activations", "logits", "unsharded_units", "dequantized", "loading_excess")),
    ("allocator", "c4", ("other", "fragmentation")),
    ("context", "c5", ("context",)),
)
"""Terms of `memory_estimate.estimate` under one name. What torch allocates is the first three; what its allocator holds
beyond that, and CUDA's and NCCL's context, are measured on their own."""

LIBRARIES_GIB = 0.6
"""Resident memory of a process that has imported Unsloth and loaded nothing; torch 2.13 for CPUs, measured."""


def chart(predicted: Json, measured: Sequence[Measured], *, on_cpu: bool, of_gib: float | None) -> Markup:
    """Bars in GiB; empty where nothing was predicted nor measured. `of_gib` is the memory of the smallest GPU."""
    rows = [row for row in (_predicted(predicted), *map(_measured, measured)) if row]
    each = "process" if on_cpu else "GPU"
    note = f"GiB per {each}" + (f", of which it has {gib(of_gib)}" if of_gib and not on_cpu else "")
    return bars("Predicted and measured" if len(rows) > 1 else rows[0].name.title() if rows else "", rows, note=note)


def verdict(predicted: Json, measured: Sequence[Measured], *, on_cpu: bool) -> str:
    """Say how near the prediction came to the largest rank, in what both know; empty where they share nothing."""
    terms = {name: number(value) or 0.0 for name, value in predicted.items()}
    allocated = max((one.allocated or 0.0 for one in measured), default=0.0)
    expected = sum(terms.get(name, 0.0) for _, _, names in _GROUPS[:3] for name in names) + terms.get("other", 0.0)
    held = max((one.host or 0.0 for one in measured), default=0.0)
    if on_cpu and expected and held:
        return (
            f"The plan counts tensors, {gib(expected)}. On a CPU all that a process keeps resident is measured, "
            f"{gib(held)}: Python and its libraries, which take {gib(LIBRARIES_GIB)} before a model is loaded, and "
            "memory that was freed and is kept for use again are in it."
        )
    if on_cpu or not expected or not allocated:
        return ""
    off = expected / allocated - 1
    word = "more" if off >= 0 else "less"
    took = f"The plan expected {gib(expected)} of tensors and the largest rank took {gib(allocated)}"
    return f"{took}: {percent(abs(off), 1)} {word} than measured."


def _predicted(terms: Json) -> Bar | None:
    values = {name: number(value) or 0.0 for name, value in terms.items() if name != "total"}
    parts = [(name, sum(values.pop(term, 0.0) for term in known), colour) for name, colour, known in _GROUPS]
    return _bar("predicted", *parts, ("other", sum(values.values()), "c6"))


def _measured(one: Measured) -> Bar | None:
    name = "largest" if one.rank is None else f"rank {one.rank}"
    if one.allocated is None:
        return _bar(name, ("host memory", one.host or 0.0, "c6"))
    held = (one.reserved or 0.0) - one.allocated
    context = ("context", one.context or 0.0, "c5")
    return _bar(name, ("allocated by torch", one.allocated, "c7"), ("allocator", held, "c4"), context)


def _bar(name: str, *parts: tuple[str, float, str]) -> Bar | None:
    """A bar of parts, each a name, its GiB and its colour; None where there is none."""
    made = tuple(Segment(part, value, colour, f"{value:.1f}") for part, value, colour in parts if value > 0)
    return Bar(name, made, gib(math.fsum(segment.value for segment in made))) if made else None
