"""Ways out of a refusal: changes to a run or its hardware, offered only where the planner has planned with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.run_config import RunConfig
from ..errors import ConfigError, Problem, as_word
from ..hardware.hardware import Hardware

MOST_TRIES = 60
"""Plans that are made at most to find out what to offer; each takes a few hundredths of a second."""
DEEPEST = 3
"""Changes that are offered together at most."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A change that may lead to a plan, alone or with others."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """New values by dotted key; None stands for a key that is left out."""
    gpus: int | None = None
    """GPUs of the same kind in a machine."""
    machines: int | None = None
    result: str = field(default="", compare=False)
    """What comes of it, told in parentheses."""
    besides: tuple[Problem, ...] = field(default=(), compare=False)
    """What else it puts right."""

    def __str__(self) -> str:
        words = [f"{key}={as_word(value)}" for key, value in self.changes.items() if value is not None]
        words += [f"no {key}" for key, value in self.changes.items() if value is None]
        machines = f"{self.machines} machines of " if (self.machines or 1) > 1 else ""
        words += [f"{machines}{self.gpus} such GPUs"] if self.gpus else []
        return " and ".join(words) + (f" ({self.result})" if self.result else "")

    def __add__(self, other: Way) -> Way:
        changes = {**self.changes, **other.changes}
        besides = self.besides + other.besides
        gpus, machines = other.gpus or self.gpus, other.machines or self.machines
        return Way(changes=changes, gpus=gpus, machines=machines, besides=besides)

    def alike(self, other: Way) -> bool:
        """Return whether both give nothing but other values to the same keys."""
        return (
            bool(self.changes)
            and replace(self, changes={}) == replace(other, changes={})
            and (self.changes.keys() == other.changes.keys())
        )

    def within(self, other: Way) -> bool:
        """Return whether `other` asks for all that this one does."""
        return self + other == other + self == other

    def of(self, run: RunConfig, hardware: Hardware) -> tuple[RunConfig, Hardware]:
        """Return `run` and `hardware` so changed."""
        for key, value in self.changes.items():
            section, _, name = key.partition(".")
            old = getattr(run, section)
            if isinstance(old, dict):
                new: Any = {k: v for k, v in old.items() if k != name} | ({} if value is None else {name: value})
            else:
                new = replace(old, **{name: value})
            run = replace(run, **{section: new})
        if self.gpus:
            one = min(hardware.devices, key=lambda device: device.memory_gib)
            more = tuple(replace(one, index=index, memory_free_gib=None) for index in range(self.gpus))
            hardware = replace(hardware, devices=more)
        return run, replace(hardware, num_machines=self.machines or hardware.num_machines)


class Refused(ConfigError):
    """A refusal with its ways out, in groups of which one way is enough, the best first.

    `before` and `after` are fixes that no way can express, around the ways; `instead` stands where there is none.
    """

    def __init__(
        self,
        problem: Problem,
        groups: Sequence[Sequence[Way]],
        after: str = "",
        *,
        before: str = "",
        instead: str = "describe another run: no few changes of this one lead to a plan",
    ) -> None:
        self.groups, self.after, self.before, self.instead = groups, after, before, instead
        ways = [way for group in groups for way in group]
        text = ""
        for last, way in zip([None, *ways], ways, strict=False):
            text += f"{'' if not last else ' or ' if last.alike(way) else ', or '}{way}"
        super().__init__(replace(problem, fix=", or ".join(filter(None, [before, text, after])) or instead))

    def offering(self, ways: Sequence[Way]) -> Refused:
        """Return the same refusal with these ways and no others, and what else these put right."""
        (problem,) = self.problems
        besides = {one.key: one for way in ways[:1] for one in way.besides if one.key != problem.key}
        told = [f"Besides, {one.key}={one.value}: {one.consequence}" for one in besides.values()]
        problem = replace(problem, consequence=" ".join([problem.consequence, *told]))
        return Refused(problem, [ways], self.after, before=self.before, instead=self.instead)


def tried(refused: Refused, plan: Callable[[Way], str]) -> Refused:
    """Return `refused` with those of its ways with which `plan` makes a plan, or groups of them where none does alone.

    `plan` returns what is told of the result. Where nothing leads to a plan since the model doesn't fit in memory
    either, that is the refusal which is returned.
    """
    left, further_on = iter(range(MOST_TRIES)), []

    def leads(way: Way, depth: int) -> Way | None:
        if next(left, None) is None:
            return None
        try:
            return replace(way, result=plan(way))
        except Refused as further:
            further_on.append(further)
            more = (one for group in further.groups for one in group) if depth else iter(())
            both = replace(way, besides=(*way.besides, *further.problems))
            return _first(leads(both + one, depth - 1) for one in more if not one.within(way))
        except ConfigError:
            return None

    found: list[Way] = []
    for depth in range(DEEPEST):
        for group in refused.groups:
            way = _first(leads(way, depth) for way in group)
            if way and not any(one.within(way) for one in found):
                found.append(way)
        if found:
            break
    if not found and not refused.before and not refused.after:
        refused = next((one for one in further_on if one.problems[0].key == "model.name"), refused)
    return refused.offering(found)


def _first(ways: Iterator[Way | None]) -> Way | None:
    return next((way for way in ways if way), None)
