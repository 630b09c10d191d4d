"""The checks of `benchmarks.gpu_checks` on models of published families: is it the run of one GPU, in the memory that
was planned?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.checks import CLI, COMPARED, FULL_ROWS, KEPT, SEVERAL, STEPS, Place, at_once, expect, verified
from benchmarks.pairs import CHANCE
from benchmarks.published_shapes import PUBLISHED
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.verify.runs import read_trained
from unsloth_accel.verify.settings import settings
from unsloth_accel.verify.verdict import TOLERANCES, compare

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
    verify = beside_chance if _by_chance(PUBLISHED[name]) else verified
    figures = verify(strategy, changes, dict(variables), replace(place, timeout=SECONDS))
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


def _by_chance(config: Mapping[str, Any]) -> bool:
    """Return whether a model with `config` isn't trained twice alike in bf16: a mixture of experts, or a hybrid with
    linear attention, whose norms of gradients are 0.003 apart in two calls of one GPU."""
    keys = {*config, *config.get("text_config", {})}
    return any(key.endswith("experts") or key.startswith("linear_") for key in keys)


def beside_chance(strategy: str, changes: dict[str, Any], variables: dict[str, str], place: Place) -> dict[str, Any]:
    """`verified`, but for how far apart the adapters end: at most twice as far as by chance.

    A sum that rounds otherwise sends a token to other experts, so a mixture in bf16 doesn't train twice alike. Chance
    is one process with half as many rows at once, and so twice the accumulation: the same rows in each step. (In
    float32 that ends 1e-4 apart on a CPU, with the auxiliary loss, a mean over a micro-batch.)
    """
    figures: dict[str, Any] = {}
    run = from_dict(place.values("run", strategy, **changes))
    chosen = settings(run, Hardware.detect(), place.directory / CHANCE, strategies=[strategy], steps=STEPS)
    single = chosen.single

    def one(label: str) -> None:
        if label == strategy:
            figures.update(verified(strategy, changes, variables, place, "--tolerance", "adapter=1"))
            return
        chosen.write_rows()
        single.write(single.run.output_dir)
        fewer = f"training.per_device_train_batch_size={single.batch.per_device // 2}"
        again = f"training.gradient_accumulation_steps={single.batch.accumulation * 2}"
        planned = RunDirectory(single.run.output_dir).planned_yaml
        place.run(CHANCE, *CLI, "launch", planned, fewer, again, variables=variables)

    at_once(one, (strategy, CHANCE))
    alone, other = (read_trained(single, place.directory / where / "single") for where in (KEPT, CHANCE))
    found = compare(alone, other, TOLERANCES["bf16"])
    expect(found.same_rows, f"{CHANCE}: other rows in a step")
    figures[CHANCE] = {name: getattr(found, name) for name in COMPARED}
    apart = figures[strategy]["adapter"]
    expect(apart <= 2 * found.adapter, f"the adapters end apart by more than twice what chance does: {figures}")
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
