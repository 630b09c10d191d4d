"""A trial: which fault strikes a launch where, and what has to come of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from . import actions
from .actions import Action

STEPS = 16
SAVE = 4
EVALUATE = 8
"""Steps of a run, between its checkpoints, and between its evaluations."""
FULL_DISK = r"no space left|disk.*full|make room"


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One fault of one launch: when rank `rank` comes to a place, `do` is done, and `inside` in the rank itself."""

    at: str
    """`start`, before the launch; else one of the places that `in_rank` knows."""
    do: Action = actions.nothing
    rank: int = 0
    step: int | None = None
    inside: str = ""

    @property
    def kept(self) -> int:
        """Step of the checkpoint that was whole when it struck; 0 for none."""
        if self.at == "adapter":  # saved in the last step, before its checkpoint
            return STEPS - SAVE
        return (self.step - 1) // SAVE * SAVE if self.step else 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    name: str
    fault: str
    who: str
    launches: tuple[tuple[Strike, ...], ...]
    """What strikes, launch by launch; a last one goes on from them, if they have not finished."""
    says: str = ""
    """Pattern of the words that tell the fault; empty where nobody needs to know."""
    goes_on: bool = False
    """Whether the run has to finish all the same."""
    statuses: tuple[int, ...] = ()
    """Exit statuses that are right; where none is given, 0 for a run that goes on, and any other for one that fails."""
    saves: bool = False
    """Whether the run has to keep the very step in which it was struck."""
    elsewhere: bool = False
    """Whether the run has to train to its end, and leave the adapter where there is room."""
    exact: bool = True
    """Whether the adapter has to be that of the undisturbed run to the bit, on a CPU."""
    start: str = "plain"
    strategy: str = "ddp"
    processes: int = 2
    overrides: tuple[str, ...] = ()
    """Words after `launch RUN.yaml`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More of run.yaml; the undisturbed run has them too."""
    prior: str = ""
    """What is in output_dir before: `finished`, a whole run; `killed`, one with checkpoints of steps 8 and 12."""
    disk_mib: int = 0
    """Size of the disk with output_dir on it; 0 for none of its own."""
    model: str = "tiny"
    on_disk: str = ""
    """Variable of a directory that is on that disk in the place of output_dir."""


def some_step(seed: int, name: str, low: int = 2, high: int = STEPS - 3) -> int:
    """A step from `low` to `high` that writes no checkpoint, by chance, but the same for a seed and a name."""
    return random.Random(f"{seed} {name}").choice([step for step in range(low, high + 1) if step % SAVE])


def one(name: str, strike: Strike, **facts: Any) -> Trial:
    """A trial of one launch in which one fault strikes."""
    return Trial(name=name, launches=((strike,),), **facts)
