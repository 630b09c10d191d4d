"""Capabilities: what the installed Unsloth and its neighbours can do, and what is lost without it.

Names are looked for in the installed files, not version numbers: Unsloth's releases of one month differ in what they
shard. Nothing is imported, so a look costs some 20 ms and no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from ..errors import ConfigError, Problem
from ..strategies import STRATEGIES, usual
from .patches import PATCHES, Patch


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Result of a probe; `missing` is empty where Unsloth isn't installed, since then nothing can be said."""

    versions: dict[str, str]
    """Versions of the packages that were looked into and are installed."""
    missing: tuple[Patch, ...] = ()
    """Patches that lack something, each with the first of its places where it does."""

    def unavailable(self, device: str, *, load_in_4bit: bool = False) -> dict[str, str]:
        """The strategies that can't run on `device` (`cuda` or `cpu`), each with the reason as a sentence."""
        reasons: dict[str, str] = {}
        where = ("", device, "4bit" if load_in_4bit else "")
        for patch in self.missing:
            for strategy in STRATEGIES:
                if patch.only in where and patch.what in strategy.needs:
                    reasons.setdefault(strategy.name, f"{self.sentence(patch)}.")
        return reasons

    def strategies(self, device: str) -> list[str]:
        """Return the names of the strategies that can run on `device`."""
        lost = self.unavailable(device)
        return [one.name for one in STRATEGIES if one.name not in lost and (one.runs_on_cpu or device != "cpu")]

    def sentence(self, patch: Patch) -> str:
        """Say what isn't found of `patch`, and what that costs."""
        version = self.versions.get(patch.package)
        lacks = f"{patch.package} {version} has no {patch.place}" if version else f"{patch.package} is not installed"
        return f"{lacks}: {patch.cost}"

    def problem(self, strategy: str, device: str, *, load_in_4bit: bool = False) -> Problem | None:
        """Return why `strategy` can't be had when it is asked for; None where it can."""
        lost = self.unavailable(device, load_in_4bit=load_in_4bit)
        if strategy not in lost:
            return None
        fix = next(one.fix for one in self.missing if lost[strategy] == f"{self.sentence(one)}.")
        instead = usual(2).name
        fix += "" if instead in lost else f", or distributed.strategy={instead}"
        return Problem(key="distributed.strategy", value=strategy, consequence=lost[strategy], fix=fix)


def probe(path: Sequence[str] | None = None, patches: Iterable[Patch] = PATCHES) -> Capabilities:
    """Look into the packages of this process, or of the directories in `path`; reads files and imports nothing."""
    patches = tuple(patches)
    packages = dict.fromkeys(place.partition("/")[0] for one in patches for place in one.places)
    roots = {name: _root(name, path) for name in packages}
    instead = {name for one in patches for name in one.instead if _root(name, path)}
    versions = {name: _version(name, path) for name, root in roots.items() if root}
    if roots.get("unsloth") is None:
        return Capabilities(versions=versions)
    text = functools.cache(_text)
    missing = []
    for one in patches:
        for place in one.places if not instead.intersection(one.instead) else ():
            file, _, names = place.partition(": ")
            package, _, inside = file.partition("/")
            found = text(roots[package], inside)
            gone = [name for name in names.split(", ") if not all(_has(found, word) for word in name.split("."))]
            if gone:
                missing.append(replace(one, place=": ".join(filter(None, (file, ", ".join(gone))))))
                break
    return Capabilities(versions=versions, missing=tuple(missing))


@functools.cache
def here() -> Capabilities:
    """Return the capabilities of this process's packages; looked for once."""
    return probe()


def lacking(strategy: str | None, device: str | None) -> list[Problem]:
    """Return what a strategy that Unsloth itself implements lacks here; for others a script may do without Unsloth."""
    record = STRATEGIES.get(strategy)
    if record is None or not record.by_unsloth or device != "cpu":
        return []
    problem = here().problem(record.name, device)
    return [problem] if problem else []


def available(what: str, *, needed: bool = True) -> bool:
    """Return whether this process's packages have the names of the patch `what`, for who is about to use them.

    Where they are gone: raises `ConfigError` if the patch can't be done without; otherwise says on rank 0 what is lost.
    Does neither where it isn't `needed`.
    """
    lost = next((one for one in here().missing if one.what == what), None)
    if lost is None or not needed:
        return lost is None
    sentence, version = f"{here().sentence(lost)}.", here().versions.get(lost.package, "")
    if lost.missing == "refuse":
        raise ConfigError(Problem(key=lost.package, value=version, consequence=sentence, fix=lost.fix))
    if lost.missing == "do without" and os.environ.get("RANK", "0") == "0":
        print(f"unsloth_accel: {sentence}", flush=True)
    return False


def _text(root: Path | None, file: str) -> str | None:
    if root is None or not (root / file).is_file():
        return None
    return (root / file).read_text(encoding="utf-8", errors="replace")


def _has(text: str | None, word: str) -> bool:
    """Whether `text` has `word` as a word; a pattern for each would take ten times as long to compile as to search."""
    if text is None:
        return False
    at = text.find(word)
    while word and at >= 0:
        around = text[max(at - 1, 0) : at] + text[at + len(word) : at + len(word) + 1]
        if not any(beside.isalnum() or beside == "_" for beside in around):
            return True
        at = text.find(word, at + 1)
    return not word


def _root(name: str, path: Sequence[str] | None) -> Path | None:
    """The directory of package `name`; None where it is not installed."""
    try:
        spec = importlib.util.find_spec(name) if path is None else PathFinder.find_spec(name, path)
    except ValueError:  # a module that stands in for the package
        return None
    if spec is None or not spec.origin:  # a bare directory of that name is no package
        return None
    return Path(spec.origin).parent


def _version(name: str, path: Sequence[str] | None) -> str:
    found = metadata.distributions(name=name) if path is None else metadata.distributions(name=name, path=list(path))
    return next((one.version for one in found), "of an unknown version")
