"""The reference of preferences: what its passes take of a run, and whether computing them once, before training, pays.

TRL reads every row with the reference in every epoch; with `precompute_ref_log_probs` once, at the beginning of each
launch, on all ranks (trl/trainer/dpo_trainer.py: `_precompute_ref_logps`).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from ..config.run_config import RunConfig
from ..data.length_estimate import RowLengths
from ..errors import counted
from ..methods import METHODS
from .batch import Batch
from .options import Choice, Option
from .run_time import hours_text, steps_of

FIELD = "precompute_ref_log_probs"
KEY = f"training.{FIELD}"
LEAST_SAVED = 0.02
"""Share of a run's time below which the other way is not worth a word."""


def told_of_reference(
    run: RunConfig, batch: Batch, lengths: RowLengths | None, chosen: Option | None, choice: Choice | None
) -> str:
    """Return a sentence on the reference beforehand: what it takes where `run` asks for it, what it would save where it
    doesn't; empty where nothing can be said, or where it saves nothing and nobody asked."""
    method, asked = METHODS[run.method], bool(run.training.get(FIELD))
    found = steps_of(run, batch, lengths)
    if not method.reference_passes or method.generates or found is None or lengths is None or not lengths.total:
        return ""
    steps, rows, epoch = found[0], lengths.total, ceil(lengths.total / batch.global_size)
    pays = steps > epoch
    trained = f"the {steps * batch.global_size:,} rows of {counted(steps, 'step')}"
    once = f"reads each of {counted(rows, 'row')} once, at the beginning of each launch"
    both = _seconds(method.other_passes + method.reference_passes, chosen, choice)
    without = _seconds(method.other_passes, chosen, choice)
    share, times = 0.0, ""
    if both and without:
        each = both - without
        share = each * (steps - epoch) / (both * steps)
        more = f"{abs(share):.0%} {'less' if share > 0 else 'more'}" if abs(share) >= 0.005 else "no less"
        times = f": about {hours_text(each * epoch / 3600)}, and {more} time in all"
    if asked:
        return f"{KEY}: the reference {once}, where without it would read {trained}{times}."
    # What divides the weights as it loads can't have it (see the planner).
    divided = chosen is not None and chosen.record.loads_shards
    if not pays or divided or run.data.streaming or (both and share < LEAST_SAVED):
        return ""
    return (
        f"the reference reads {trained}. With {KEY}=true it {once}{times}. Not taken by itself: it was compared on CPU "
        "processes only."
    )


def _seconds(passes: int, chosen: Option | None, choice: Choice | None) -> float | None:
    """Return the seconds of a step with so many passes without gradients, if they can be estimated."""
    if chosen is None or choice is None or chosen.speed is None:
        return None
    asked = replace(choice, work=replace(choice.work, reference_passes=passes))
    speed = asked.speed(chosen.strategy, chosen.per_device, chosen.keep_activations)
    return speed.step_seconds if speed else None
