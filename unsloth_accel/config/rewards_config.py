"""RewardsConfig: the reward functions of a run, their weights, and what happens when one of them fails."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import nearest

FUNCTIONS, ON_ERROR = "rewards.functions", ("stop", "skip")


@dataclass(frozen=True)
class RewardFunction:
    name: str
    """Name of a reward, or the import path of a function of one's own: `my_rewards:length`."""
    weight: float = 1.0
    """Factor of its rewards in the sum over all functions."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments that it is made with."""


@dataclass(frozen=True)
class RewardsConfig:
    """The functions that score completions, for a method that generates them."""

    functions: tuple[RewardFunction, ...] = ()
    """Reward functions: names, or import paths of functions of one's own (`my_rewards:length`), each alone or as
    {name: …, weight: …, arguments: {…}}, with 1 as the usual weight."""
    on_error: str = "stop"
    """Reaction to a function that raises, returns NaN or the wrong number of values, or takes too long: `stop` ends the
    run on all ranks together, `skip` goes on without these rewards. Either way it is told, counted and reported."""
    timeout: float = 60.0
    """Seconds that one call of a function, which scores the completions of one process, may take."""


Wrong = tuple[str, Any, str, str] | tuple[str, Any, str, str, str]
"""Key, value, consequence and fix of a mistake, and the rule that tells it where that isn't `run-value`."""


def read_functions(given: Any) -> tuple[tuple[RewardFunction, ...], list[Wrong]]:
    """Return the functions that `given`, the value of rewards.functions, describes, or what is wrong with them."""
    if given is None:
        return (), []
    if not isinstance(given, Sequence) or isinstance(given, str):
        fix = f"rewards.functions: [{given}]" if isinstance(given, str) else "rewards.functions: [accuracy, format]"
        return (), [(FUNCTIONS, given, "wrong type: a list of functions is needed.", fix)]
    entries = [{"name": one} if isinstance(one, str) else one for one in given]
    wrong = [found for place, one in enumerate(entries) for found in _wrong(f"{FUNCTIONS}.{place}", one)]
    return (() if wrong else tuple(RewardFunction(**one) for one in entries)), wrong


def name_files_beside(values: DictConfig, folder: Path) -> None:
    """Give functions of a file that isn't in the working directory, but in `folder`, where the run.yaml of these
    `values` lies, the path of that file: the launched processes don't know where run.yaml was."""
    try:
        functions = OmegaConf.select(values, FUNCTIONS, default=None, throw_on_missing=False)
        listed = [*functions] if isinstance(functions, ListConfig) else []
    except OmegaConfBaseException:  # a reference that leads nowhere: told by the reader
        return
    for place, one in enumerate(listed):
        name = one.get("name") if isinstance(one, DictConfig) else one
        module, colon, function = name.rpartition(":") if isinstance(name, str) else ("", "", "")
        file = module if module.endswith(".py") else f"{module}.py"
        if colon and not Path(file).is_file() and (folder / file).is_file():
            found = f"{folder / file}:{function}"
            functions[place] = {**one, "name": found} if isinstance(one, DictConfig) else found


def _wrong(key: str, entry: Any) -> Iterator[Wrong]:
    form = "write a name, or {name: …, weight: …, arguments: {…}}"
    if not isinstance(entry, Mapping):
        yield key, entry, "wrong type: a function is its name, or a mapping.", form
        return
    known = [one.name for one in dataclasses.fields(RewardFunction)]
    for name in entry:
        if name not in known:
            yield f"{key}.{name}", None, "unknown key.", nearest(str(name), known, f"{key}."), "run-unknown-key"
    name, weight, arguments = entry.get("name"), entry.get("weight", 1.0), entry.get("arguments", {})
    if not isinstance(name, str) or not name:
        yield f"{key}.name", name, "is missing: which function is meant?", form
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= sys.float_info.max:
        yield f"{key}.weight", weight, "wrong type: a finite number is needed.", "remove it, or give a number"
    if not isinstance(arguments, Mapping):
        fix = "remove it, or write {argument: value}"
        yield f"{key}.arguments", arguments, "wrong type: a mapping of names to values is needed.", fix
