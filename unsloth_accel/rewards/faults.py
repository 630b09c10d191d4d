"""What goes wrong in a reward function: counted by kind over all ranks, and the first of each kind in words."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UnslothAccelError, counted, first_line, shortened

Kind = Literal["raised", "no number", "wrong number of values", "too slow"]
_SHOWN = 120
"""Characters of a completion."""


class RewardError(UnslothAccelError):
    """A reward function failed, and `rewards.on_error` is `stop`."""

    on_every_rank = True


@dataclass(frozen=True)
class Fault:
    """What one rank found in one call."""

    kind: Kind
    completions: int
    """How many of the call's completions have no reward by it."""
    text: str
    """What happened, with the example."""


@dataclass
class Tally:
    """The calls of one function on all ranks, and their faults."""

    calls: int = 0
    completions: int = 0
    faults: dict[Kind, int] = field(default_factory=dict)
    """Calls with a fault of each kind."""
    lost: int = 0
    """Completions without a reward by a fault."""
    first: dict[Kind, str] = field(default_factory=dict)

    def add(self, name: str, found: Sequence[tuple[int, Sequence[Fault]]]) -> list[str]:
        """Count the completions and the faults of a call on each rank; returns the faults that are the first of their
        kind, in words."""
        self.calls += 1
        new = []
        for rank, (completions, faults) in enumerate(found):
            self.completions += completions
            for fault in faults:
                self.lost += fault.completions
                self.faults[fault.kind] = self.faults.get(fault.kind, 0) + 1
                if fault.kind not in self.first:
                    where = f" on rank {rank}" if len(found) > 1 else ""
                    self.first[fault.kind] = f"reward {name} {fault.text}{where}"
                    new.append(self.first[fault.kind])
        return new

    def as_json(self) -> dict[str, Any]:
        kinds = {kind: {"calls": count, "first": self.first[kind]} for kind, count in self.faults.items()}
        return {"calls": self.calls, "completions": self.completions, "without_reward": self.lost, "faults": kinds}


def raised(error: BaseException, completions: Sequence[str]) -> Fault:
    """Return the fault of a function that raised, with the line where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = f"raised {type(error).__name__}: {shortened(first_line(error), _SHOWN)}{where}"
    return Fault("raised", len(completions), f"{text}, {_among(completions)}")


def too_slow(seconds: float, completions: Sequence[str]) -> Fault:
    """Return the fault of a function that was interrupted."""
    return Fault("too slow", len(completions), f"took more than {seconds:g} s, {_among(completions)}")


def numbers(values: Any, completions: Sequence[str]) -> tuple[list[float | None], list[Fault]]:
    """Return what a function gave as a number, or None, for each completion, and what is wrong with it: another number
    of values, or some that are no finite number."""
    try:
        found = list(values)
    except TypeError:
        said = f"returned {shortened(repr(values), _SHOWN)} in place of a list, {_among(completions)}"
        return [None] * len(completions), [Fault("wrong number of values", len(completions), said)]
    if len(found) != len(completions):
        said = f"returned {counted(len(found), 'value')} for {counted(len(completions), 'completion')}"
        fault = Fault("wrong number of values", len(completions), f"{said}, {_among(completions)}")
        return [None] * len(completions), [fault]
    made = [_number(one) for one in found]
    wrong = [place for place, one in enumerate(made) if one is not None and not math.isfinite(one)]
    if not wrong:
        return made, []
    example = f"{found[wrong[0]]!r} for {_quoted(completions[wrong[0]])}"
    fault = Fault("no number", len(wrong), f"returned {example}, which is no finite number")
    return [None if place in wrong else one for place, one in enumerate(made)], [fault]


def _number(value: Any) -> float | None:
    """Return a number, that of a tensor as well; NaN for anything else."""
    if value is None:
        return None
    try:
        return float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def _among(completions: Sequence[str]) -> str:
    if not completions:
        return "in a call without completions"
    return f"in a call with {counted(len(completions), 'completion')}, the first {_quoted(completions[0])}"


def _quoted(text: str) -> str:
    return repr(shortened(" ".join(text.split()), _SHOWN))
