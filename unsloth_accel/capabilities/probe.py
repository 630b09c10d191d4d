"""Capabilities: what the installed Unsloth and its neighbours can do, and what is lost without it.

Names are looked for in the installed files, not version numbers: Unsloth's releases of one month differ in what they
shard. Nothing is imported, so a look costs some 20 ms and no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ..errors import Problem
from ..strategies import STRATEGIES, usual
from .patches import PROBES, Probe


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What was found; `missing` is empty where Unsloth isn't installed, since then nothing can be said."""

    versions: dict[str, str]
    """Of the packages that were looked into, those installed."""
    missing: tuple[Probe, ...] = ()

    def unavailable(self, device: str, *, load_in_4bit: bool = False) -> dict[str, str]:
        """The strategies that can't run on `device` (`cuda` or `cpu`), each with the reason as a sentence."""
        reasons: dict[str, str] = {}
        for probe in self.missing:
            if probe.only and probe.only not in (device, "4bit" if load_in_4bit else ""):
                continue
            for strategy in STRATEGIES:
                if probe.what in strategy.needs:
                    reasons.setdefault(strategy.name, f"{self.sentence(probe)}.")
        return reasons

    def strategies(self, device: str) -> list[str]:
        """Those that can run on `device`."""
        lost = self.unavailable(device)
        return [one.name for one in STRATEGIES if one.name not in lost and (one.runs_on_cpu or device != "cpu")]

    def sentence(self, probe: Probe) -> str:
        """What `probe` didn't find, and what that costs."""
        version = self.versions.get(probe.package)
        lacks = f"{probe.package} {version} has no {probe.place}" if version else f"{probe.package} is not installed"
        return f"{lacks}: {probe.cost}"

    def problem(self, strategy: str, device: str, *, load_in_4bit: bool = False) -> Problem | None:
        """Why `strategy` can't be had when it is asked for; None where it can."""
        lost = self.unavailable(device, load_in_4bit=load_in_4bit)
        if strategy not in lost:
            return None
        fix = next(one.fix for one in self.missing if lost[strategy] == f"{self.sentence(one)}.")
        instead = usual(2).name
        fix += "" if instead in lost else f", or distributed.strategy={instead}"
        return Problem(key="distributed.strategy", value=strategy, consequence=lost[strategy], fix=fix)


def probe(path: Sequence[str] | None = None, probes: Iterable[Probe] = PROBES) -> Capabilities:
    """Look into the packages of this process, or of the directories in `path`; reads files and imports nothing."""
    probes = tuple(probes)
    roots = {name: _root(name, path) for name in dict.fromkeys(one.package for one in probes)}
    instead = {name for one in probes for name in one.instead if _root(name, path)}
    versions = {name: _version(name, path) for name, root in roots.items() if root}
    if roots.get("unsloth") is None:
        return Capabilities(versions=versions)
    needed = (one for one in probes if not instead.intersection(one.instead))
    return Capabilities(versions=versions, missing=tuple(one for one in needed if not _found(one, roots[one.package])))


@functools.cache
def here() -> Capabilities:
    """Of this process's packages; looked for once."""
    return probe()


def lacking(strategy: str | None, device: str | None) -> list[Problem]:
    """What a strategy that Unsloth itself carries out lacks here; anything else a script may do without Unsloth."""
    record = STRATEGIES.get(strategy)
    if record is None or not record.by_unsloth or device != "cpu":
        return []
    problem = here().problem(record.name, device)
    return [problem] if problem else []


def _found(one: Probe, root: Path | None) -> bool:
    file = root / one.file if root else None
    if file is None or not file.is_file():
        return False
    if not one.name:
        return True
    return re.search(rf"\b{re.escape(one.name)}\b", file.read_text(encoding="utf-8", errors="replace")) is not None


def _root(name: str, path: Sequence[str] | None) -> Path | None:
    """The directory of package `name`; None where it is not installed."""
    try:
        spec: ModuleSpec | None = (
            importlib.util.find_spec(name) if path is None else PathFinder.find_spec(name, list(path))
        )
    except ValueError:  # a module that stands in for the package
        return None
    if spec is None or not spec.origin:  # a bare directory of that name is no package
        return None
    return Path(spec.origin).parent


def _version(name: str, path: Sequence[str] | None) -> str:
    found = metadata.distributions(name=name) if path is None else metadata.distributions(name=name, path=list(path))
    return next((one.version for one in found), "of an unknown version")
