"""Verdict on whether a run on several processes is the run on one: the figures and the tolerances."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import ConfigError, Problem, counted, nearest
from ..planning.plan import Plan
from . import tensors
from .runs import Trained

LEAST_MOVED = 1e-4
"""Least movement of an adapter, as a share of its own size, for there to be anything to compare. Eight steps move it by
4 % at learning rate 2e-4 (SmolLM2-135M), by 7 % at 1e-3 (a random 2-layer Llama)."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The largest differences from one process that pass as noise; all are relative."""

    loss: float
    """Difference of a step's loss from that of one process."""
    grad_norm: float
    """Difference of a step's gradient norm, before clipping, from that of one process."""
    moved: float
    """Difference of the distance that the adapter has moved from that of one process."""
    adapter: float
    """Distance between the two adapters at the end, as a share of how far that of one process has moved."""
    reason: str = ""
    """Source of the numbers."""


_SEEN = (
    "two CPU processes with another number of threads, and so another order of sums, than the one process differ from "
    "it by {} in loss, gradient norm, way and end of the adapter (SmolLM2-135M, 8 steps)"
)
_BF16 = Tolerance(loss=0.03, grad_norm=0.04, moved=3e-3, adapter=0.1, reason=_SEEN.format("2 %, 2.6 %, 0.05 % and 4 %"))
TOLERANCES = {
    "fp32": Tolerance(
        loss=1e-5, grad_norm=1e-4, moved=1e-4, adapter=5e-3, reason=_SEEN.format("5e-7, 1e-6, 5e-8 and 1e-4")
    ),
    "bf16": _BF16,
    "fp16": replace(_BF16, reason="not measured; as for bf16, which is coarser"),
    "4-bit": replace(_BF16, adapter=0.15, reason=_SEEN.format("1 %, 1.2 %, 0.1 % and 6 %")),
}
_ON_GPUS = Tolerance(
    loss=2e-3,
    grad_norm=1e-2,
    moved=2e-3,
    adapter=0.1,
    reason="two H100 differ from one by up to 0.02 %, 0.13 %, 0.005 % and 1.9 % in loss, gradient norm, way and end of "
    "the adapter (random 1.5B and 8B, 16 or 4 bit, every strategy, 14 steps)",
)
TOLERANCES_ON_GPUS = TOLERANCES | {"bf16": _ON_GPUS, "fp16": _ON_GPUS, "4-bit": _ON_GPUS}
"""Tolerances on GPUs, which round as often on one as on several, while a CPU's sums depend on its threads."""
_OF_ANSWERS = replace(
    _ON_GPUS,
    loss=0.05,
    grad_norm=0.05,
    reason="its loss goes by sums over whole answers, which bfloat16 rounds otherwise in every run: two runs of one "
    "H200 differ by up to 2.3 % and 2.1 % in loss and gradient norm, two H200 from either of them by up to 4.3 % and "
    "4.2 %, and by 0.05 % and 0.95 % in way and end of the adapter (DPO, random 1.5B, 16 or 4 bit, 12 steps); a loss "
    "below 0.25 counts as 0.25, as two runs of one differ by up to 0.012",
)
"""Tolerance on GPUs, but in float32, of a method whose loss goes by such sums."""


_OF_RANKS = Tolerance(
    loss=5e-3,
    grad_norm=0.1,
    moved=5e-3,
    adapter=0.05,
    reason="Two CPU processes differ from one by 0.02 %, 1.2 %, 0.01 % and 0.2 % in loss, gradient norm, way and end "
    "of the adapter (KTO, a random 2-layer Llama, 6 steps at learning rate 1e-3)",
)
"""Tolerance of a method whose loss depends on the number of ranks."""
_NUMBERS = [field.name for field in fields(Tolerance) if field.name != "reason"]


def precision_of(decided: Plan) -> str:
    """Return the row of `TOLERANCES`, or `TOLERANCES_ON_GPUS`, for a plan."""
    if decided.run.model.load_in_4bit:
        return "4-bit"
    of_dtype = {"bfloat16": "bf16", "float16": "fp16"}.get(decided.run.model.dtype or "", "fp32")
    return decided.mixed_precision if decided.mixed_precision != "no" else of_dtype


def tolerance(
    precision: str,
    changes: Sequence[str] = (),
    device: str = "cpu",
    depends_on_ranks: str = "",
    *,
    sums_answers: bool = False,
) -> Tolerance:
    """Return the tolerance of `precision` on `device` with `changes`, each `name=number`, or raise `ConfigError`.

    `depends_on_ranks` and `sums_answers` are the method's (`methods.Method`); where they say something, more is
    tolerated.
    """
    made = (TOLERANCES if device == "cpu" else TOLERANCES_ON_GPUS)[precision]
    if sums_answers and device != "cpu" and precision != "fp32":
        made = _OF_ANSWERS
    if depends_on_ranks:
        numbers = {name: max(getattr(made, name), getattr(_OF_RANKS, name)) for name in _NUMBERS}
        also = f". And {made.reason}" if made is _OF_ANSWERS else ""
        made = Tolerance(**numbers, reason=f"{depends_on_ranks} {_OF_RANKS.reason}{also}")
    given: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in _NUMBERS or not 0 <= value < math.inf:
            fix = nearest(name, _NUMBERS) if name not in _NUMBERS else f"{name}=1e-3"
            raise ConfigError(Problem(key="--tolerance", value=change, consequence="is not a tolerance.", fix=fix))
        given[name] = value
    return replace(made, reason=f"given: {', '.join(changes)}", **given) if changes else made


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of a run with the one process; differences are relative, as in `Tolerance`."""

    loss: float
    grad_norm: float
    moved: float
    """Difference of movement, positive where the adapter moved further than that of one process."""
    adapter: float
    loss_absolute: float
    adapter_absolute: float
    """Largest difference of any two numbers of the adapters."""
    distance: float
    """Distance that the adapter of one process has moved, as a share of its size at the start."""
    ranks_equal: bool | None
    """Whether all ranks hold the same adapter, to the bit; None where that is unknown."""
    same_rows: bool
    """Whether every step saw as many tokens."""
    faults: tuple[str, ...]
    """Reasons why it is not the same run; empty if it is."""

    @property
    def same(self) -> bool:
        return not self.faults


def compare(one: Trained, other: Trained, allowed: Tolerance, *, loss_scale: float = 0.0) -> Comparison:
    """Compare `other` with `one`, the run of one process; `loss_scale` is the method's (`methods.Method`)."""
    start, end, theirs = (tensors.read_tensors(path) for path in (one.start, one.adapter, other.adapter))
    moved = tensors.distance(start, end)
    size = tensors.size(start)
    found = Comparison(
        loss=largest(one.loss, other.loss, least=loss_scale),
        grad_norm=largest(one.grad_norm, other.grad_norm),
        moved=tensors.distance(start, theirs) / moved - 1 if moved else math.inf,
        adapter=tensors.distance(end, theirs) / moved if moved else math.inf,
        loss_absolute=max((abs(a - b) for a, b in zip(one.loss, other.loss, strict=False)), default=math.inf),
        adapter_absolute=tensors.largest_difference(end, theirs),
        distance=moved / size if size else 0.0,
        ranks_equal=_ranks_equal(other),
        same_rows=one.tokens == other.tokens,
        faults=(),
    )
    same_names = end.keys() == theirs.keys()
    return replace(found, faults=tuple(_faults(found, one, other, allowed, same_names)))


def _faults(found: Comparison, one: Trained, other: Trained, allowed: Tolerance, same_names: bool) -> Iterator[str]:
    if len(one.loss) != len(other.loss):
        yield f"it made {counted(len(other.loss), 'step')}, one process {len(one.loss)}"
    if not all(map(math.isfinite, one.loss)):
        yield "the loss of one process is not finite, so there is nothing to compare"
    learnt = found.distance > LEAST_MOVED
    if not learnt:
        yield (
            f"nothing was learnt: the adapter of one process moved by {share(found.distance)} of its size, and below "
            f"{share(LEAST_MOVED)} there is nothing to compare"
        )
    if not found.same_rows:
        yield "the steps did not see the same rows: their numbers of tokens differ"
    if found.ranks_equal is False:
        yield "the ranks ended with different adapters: they did not train in step"
    if not same_names:
        yield "the saved adapters don't hold the same tensors"
    if not found.loss <= allowed.loss:
        yield f"the loss differs by {share(found.loss)} (tolerated: {share(allowed.loss)})"
    if not found.grad_norm <= allowed.grad_norm:
        what = f"the gradient norm differs by {share(found.grad_norm)} (tolerated: {share(allowed.grad_norm)})"
        yield what + _hint(one, other)
    if learnt and not abs(found.moved) <= allowed.moved:
        how = "further" if found.moved > 0 else "less far"
        yield f"the adapter moved {share(abs(found.moved))} {how} (tolerated: {share(allowed.moved)})"
    if learnt and not found.adapter <= allowed.adapter:
        yield (
            f"the final adapters differ by {share(found.adapter)} of the distance that one process's moved "
            f"(tolerated: {share(allowed.adapter)})"
        )


def _hint(one: Trained, other: Trained) -> str:
    """Return what a constant factor between the gradient norms suggests."""
    ratios = [b / a for a, b in zip(one.grad_norm, other.grad_norm, strict=False) if a > 0 and math.isfinite(b)]
    factor = statistics.median(ratios) if ratios else math.nan
    count = other.num_processes
    looks = ""
    if count > 1 and abs(factor / count - 1) < 0.05:
        looks = "summed over ranks and not averaged"
    elif count > 1 and abs(factor * count - 1) < 0.05:
        looks = "averaged twice"
    return f": {factor:.2f} times that of one process, as if gradients were {looks}" if looks else ""


def _ranks_equal(run: Trained) -> bool | None:
    hashes = [rank.get("adapter") for rank in run.ranks]
    if None in hashes:
        return None
    return len(hashes) == run.num_processes and len(set(hashes)) == 1


def largest(ours: Sequence[float], theirs: Sequence[float], *, least: float = 0.0) -> float:
    """Return the largest relative difference of two lists, from `ours`, whose numbers count as `least` at least."""
    return max((_relative(a, b, least) for a, b in zip(ours, theirs, strict=False)), default=math.inf)


def _relative(ours: float, theirs: float, least: float) -> float:
    """Return the difference from `ours` as a share of it; 0 where both overflowed, as fp16's loss scaling allows."""
    finite = math.isfinite(ours), math.isfinite(theirs)
    if ours == theirs or not any(finite):
        return 0.0
    size = max(abs(ours), least)
    return abs(theirs - ours) / size if size and all(finite) else math.inf


def share(value: float) -> str:
    """Return `0.12 %`; `3e-07` where that would be nothing."""
    if not math.isfinite(value):
        return "∞"
    if abs(value) < 1e-4:
        return f"{value:.0e}" if value else "0"
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %"
