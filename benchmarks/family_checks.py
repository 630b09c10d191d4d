"""The checks of `benchmarks.gpu_checks` on models of published families: is it the run of one GPU, in the memory that
was planned?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.checks import FULL_ROWS, SEVERAL, Place, expect, verified
from benchmarks.published_shapes import PUBLISHED

MEMORY = 0.15
"""Share by which the memory that is planned may differ from what is measured."""
SECONDS = 570
"""Seconds of `verify`: the first run of a mixture or a hybrid compiles for minutes."""
EAGER = {"UNSLOTH_COMPILE_DISABLE": "1"}
HANG_AFTER = 20
"""Seconds without progress after which ranks say where they hang, within `SECONDS`; compiling has ten times as many."""


def family(strategy: str, name: str, variables: Mapping[str, str], place: Place) -> dict[str, Any]:
    """`verify` of the shape `name` of `PUBLISHED` by `strategy`, and the peak of its memory beside the plan's.

    With Unsloth's compiling off, by `variables`, only that it is the same run: eager mode takes more than is planned.
    """
    # No blocks keep their activations, so that the plan's number of them is the run's.
    changes = {"model": {"name": name, "keep_activations": 0}, "logging": {"hang_after": HANG_AFTER}, **FULL_ROWS}
    figures = verified(strategy, changes, dict(variables), replace(place, timeout=SECONDS))
    said = json.loads((place.directory / "verified.json").read_text(encoding="utf-8"))
    if place.device == "cpu" or variables == EAGER:
        return figures
    memory: dict[str, Any] = {}
    for one in ("single", strategy):
        predicted = place.planned(f"planned-{one}", one, **changes).memory
        expect(predicted is not None, f"{one}: no estimate")
        assert predicted is not None
        ranks = said["runs"][one]["ranks"]
        peak = max(max(rank["loading"], rank["training"]) for rank in ranks)
        memory[one] = {
            "predicted": [round(predicted.loading, 2), round(predicted.training, 2)],
            "measured": [max(rank[phase] for rank in ranks) for phase in ("loading", "training")],
            "error": round(predicted.allocated / peak - 1, 3),
        }
    figures["memory"] = memory
    far = {one: found for one, found in memory.items() if abs(found["error"]) > MEMORY}
    expect(not far, f"the same run; its memory is not what was planned: {figures}")
    return figures


FAMILY_CHECKS: dict[str, Callable[[Place], dict[str, Any]]] = {
    **{f"family-{name}-{strategy}": partial(family, strategy, name, {}) for name in PUBLISHED for strategy in SEVERAL},
    # What of the time of the others is Unsloth's compiling.
    **{f"family-{name}-{strategy}-eager": partial(family, strategy, name, EAGER)
       for name in PUBLISHED for strategy in SEVERAL},
}  # fmt: skip


def models_of(checks: Iterable[str]) -> list[str]:
    """Return the shapes of `PUBLISHED` that `checks`, by their names, are on."""
    wanted = FAMILY_CHECKS.keys() & checks
    return [name for name in PUBLISHED if any(check.startswith(f"family-{name}-") for check in wanted)]
