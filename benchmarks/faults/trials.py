"""All trials, by strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .other_trials import damaged, directories, disks, wrong_ranks
from .signal_trials import launchers, ranks
from .trial import Trial

ALONE = ("launcher-sigkill", "launcher-sighup", "launcher-sigquit", "launcher-sigterm")
"""Of those whose launch is of one process."""
EVERYWHERE = (
    *("rank1-sigkill", "rank1-sigstop", "rank0-sigkill-in-checkpoint", "launcher-sigkill", "launcher-sigterm"),
    *("full-weights-once", "full-random-state-once", "full-adapter", "rank1-raises", "rank1-nan"),
    *("cut-adapter-model",),
)
"""Of those that differ by strategy."""
LARGE = ("rank1-sigkill", "launcher-sigterm")
"""Of those that train a real model, too."""


def trials(seed: int, strategies: Sequence[str], processes: int) -> list[Trial]:
    """Every trial; all under the first of `strategies`, a choice under the others and in one process."""
    whole = [made for group in GROUPS for made in group(seed)]
    found = []
    for strategy in strategies:
        made = whole if strategy == strategies[0] else [one for one in whole if one.name in EVERYWHERE]
        found += [replace(one, name=f"{strategy}/{one.name}", strategy=strategy, processes=processes) for one in made]
    large = [one for one in whole if one.name in LARGE]
    found += [
        replace(one, name=f"{strategies[0]}/{one.name}-smollm2", strategy=strategies[0], model="smollm2")
        for one in large
    ]
    alone = [one for one in whole if one.name in ALONE]
    found += [replace(one, name=f"single/{one.name}", strategy="single", processes=1) for one in alone]
    return [*{one.name: one for one in found}.values()]


GROUPS = (ranks, launchers, disks, directories, damaged, wrong_ranks)
