"""Rehearsed: what the longest step and the longest evaluation batch took, and what was corrected."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import counted
from ..planning.memory_estimate import WORST_ERROR


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What was rehearsed on one rank, or on that with the most tokens."""

    rows: int
    """Rows of the longest micro-batch."""
    tokens: int
    """Tokens that it is computed with, padding included."""
    step: int | None
    """The optimizer step that has it, counted from 1; None where the order of the rows isn't known beforehand."""
    keep_activations: tuple[int, int] = (0, 0)
    """Decoder blocks that keep their activations, before and from now on."""
    parts: int = 1
    """Parts in which each micro-batch is computed from now on."""
    peak_gib: float | None = None
    """The most GiB that torch allocated for what fits; None on a CPU."""
    refused_gib: float | None = None
    """The most GiB that torch allocated before a lack of memory was corrected; None where there was none."""
    evaluated: tuple[int, int] = (0, 0)
    """Rows and tokens of the longest evaluation batch."""
    eval_batch_size: int | None = None
    """Rows per device in an evaluation from now on; None where nothing is evaluated."""
    refused_eval_batch_size: int | None = None
    """Rows per device of an evaluation that didn't fit; None where it did."""
    seconds: float = 0.0

    def told(self, planned_gib: float | None) -> str:
        """Say it in a sentence, with what by the plan torch allocates, as `peak_gib` counts it."""
        which = "the longest step" if self.step is None else f"step {self.step:,}, the longest,"
        text = f"rehearsed {which} with {counted(self.rows, 'row')} ({self.tokens:,} tokens) at once"
        if self.peak_gib is not None:
            text += f": {self.peak_gib:.1f} GiB"
        if self.peak_gib and planned_gib and not self.refused_gib:
            off = self.peak_gib / planned_gib - 1
            text += f", {abs(off):.0%} {'more' if off > 0 else 'less'} than planned"
        text += f", in {self.seconds:.1f} s"
        corrected = []
        if self.keep_activations[0] > self.keep_activations[1]:
            corrected.append("blocks that keep their activations {} → {}".format(*self.keep_activations))
        if self.parts > 1:
            corrected.append(f"each micro-batch in {self.parts} parts")
        if self.refused_eval_batch_size:
            corrected.append(
                f"{counted(self.eval_batch_size or 0, 'row')} per device in an evaluation instead of "
                f"{self.refused_eval_batch_size}"
            )
        if corrected:
            why = "out of memory"
            off = (self.refused_gib or 0.0) / planned_gib - 1 if planned_gib else 0.0
            if planned_gib and self.refused_gib and off < -WORST_ERROR:
                why = f"out of memory at {self.refused_gib:.1f} GiB, less than the plan's {planned_gib:.1f} was free"
            elif planned_gib:
                low = f"at least {off:.0%} " if off >= 0.005 else ""
                why = f"the plan's {planned_gib:.1f} GiB were {low}too low"
            text += f"; {why}: {', '.join(corrected)}"
        return text
