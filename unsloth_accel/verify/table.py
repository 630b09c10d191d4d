"""Results of `verify` as rows of cells, and as text where there is no terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import counted
from .verdict import share
from .verification import StrategyOutcome, Verification

if TYPE_CHECKING:
    from ..planning.plan import Plan

NOTHING = "–"


def heading(plan: Plan, precision: str, steps: int) -> str:
    """Return a line on what is compared."""
    model = plan.spec.name if plan.spec else plan.run.model.name
    rows = counted(plan.batch.global_size, "row")
    return f"{model} in {precision}, {counted(steps, 'step')} of {rows}, on {plan.hardware}"


def table(found: Verification) -> list[list[str]]:
    """Return rows of cells, the first of them the header: a figure, one process, each strategy, what is tolerated."""
    allowed, single = found.tolerance, found.single
    rows = [["difference from one process", *(outcome.name for outcome in found.outcomes), "tolerated"]]
    for label, key in _DIFFERENCES:
        cells = [share(getattr(o.comparison, key)) if o.comparison else NOTHING for o in found.outcomes]
        rows.append([label, *cells, share(getattr(allowed, key))])
    rows.append(["ranks hold the same adapter", *(_ranks(outcome) for outcome in found.outcomes), ""])
    rows.append(["verdict", *("not the same" if o.faults else "the same" for o in found.outcomes), ""])
    rows.append([])
    runs = [single, *(outcome.trained for outcome in found.outcomes)]
    rows.append(["", "one process", *(outcome.name for outcome in found.outcomes)])
    speeds = [run.tokens_per_second(found.warm_up) if run else 0.0 for run in runs]
    rows.append(["processes", "1", *(str(outcome.plan.num_processes) for outcome in found.outcomes)])
    rows.append([f"tokens/s after {found.warm_up} steps", *(f"{s:,.0f}" if s else NOTHING for s in speeds)])
    rows.append(["times one process", *(f"{s / speeds[0]:.2f}" if s and speeds[0] else NOTHING for s in speeds)])
    kept = [plan.keep_activations for plan in (found.settings.single, *(outcome.plan for outcome in found.outcomes))]
    if any(kept):
        rows.append(["blocks that keep activations", *map(str, kept)])
    for label, key in _MEMORY:
        if single.memory(key):
            by_rank = (" ".join(f"{value:.2f}" for value in run.memory(key)) if run else "" for run in runs)
            rows.append([label, *(one or NOTHING for one in by_rank)])
    return rows


_DIFFERENCES = (
    ("loss, largest of all steps", "loss"),
    ("gradient norm, largest", "grad_norm"),
    ("how far the adapter moved", "moved"),
    ("where the adapter ended", "adapter"),
)
_MEMORY = (
    ("GPU GiB by rank, loading", "loading"),
    ("GPU GiB by rank, training", "training"),
    ("host GiB by rank, loading", "host_loading"),
    ("host GiB by rank, training", "host_training"),
)


def verdict(found: Verification) -> Iterator[str]:
    """Yield why a strategy is not the same as one process, and what was not compared."""
    for outcome in found.outcomes:
        for fault in outcome.faults:
            yield f"{outcome.name}: not the same: {fault.rstrip('.')}."
    for name, reason in found.settings.left_out.items():
        yield f"{name}: left out: {reason}"
    for note in found.settings.notes:
        yield f"note: {note}."
    yield f"{found.precision} tolerance: {found.tolerance.reason}."


def as_text(found: Verification) -> str:
    """Return aligned columns for a file or a pipe."""
    rows = table(found)
    widths = [max(len(cell) for cell in column) for column in itertools.zip_longest(*rows, fillvalue="")]
    lines = []
    for row in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False))
        lines.append("  ".join([f"{row[0] if row else '':<{widths[0]}}", *cells]).rstrip())
    *told, reason = verdict(found)
    return "\n".join([*lines, "", *told, textwrap.fill(reason, 110, subsequent_indent="  ")])


def _ranks(outcome: StrategyOutcome) -> str:
    equal = outcome.comparison.ranks_equal if outcome.comparison else None
    sharded = outcome.trained and outcome.trained.ranks[0].get("sharded")
    return NOTHING if equal is None else "no" if not equal else "sharded" if sharded else "yes"
