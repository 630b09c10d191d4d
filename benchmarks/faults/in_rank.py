"""Brings a rank to the place where a fault strikes, and has it wait there; imported as a plugin in every process of a
launch (UNSLOTH_ACCEL_PLUGINS), it does something only where the variable UNSLOTH_FAULTS says so.

Signals and full disks come from outside, while the rank waits. What only a rank can do wrong itself (an exception, a
NaN, other rows) it does once it has gone on (`inside`).
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .inside import watch

VARIABLE = "UNSLOTH_FAULTS"
PATIENCE = 60.0
"""Seconds that a rank waits for the fault; then it goes on without."""


class Rank:
    """The points of this rank: `{"rank": 1, "at": "step", "step": 5, "inside": "nan"}`, and how fast it goes on."""

    def __init__(self, points: list[dict[str, Any]], directory: Path, pace: float) -> None:
        own = int(os.environ.get("RANK", "0"))
        self.points = [(number, point) for number, point in enumerate(points) if point["rank"] == own]
        self.last = directory / f"go-{len(points) - 1}"
        self.directory = directory
        self.pace = pace

    def at(self, place: str, step: int | None = None) -> str | None:
        """Wait where this is the place of a point that nobody has come to; returns what is to be done inside."""
        for number, point in self.points:
            here = self.directory / f"reached-{number}"
            if point["at"] != place or point.get("step") not in (None, step) or here.exists():
                continue
            hidden = here.with_suffix(".new")
            hidden.write_text(f"{os.getpid()} {step or 0}", encoding="utf-8")
            hidden.rename(here)
            latest = time.monotonic() + PATIENCE
            while not (self.directory / f"go-{number}").exists() and time.monotonic() < latest:
                time.sleep(0.01)
            inside: str | None = point.get("inside")
            return inside
        return None

    def slow(self) -> None:
        """Spend time on a step: real ones take as long, and what ends a run once all has struck needs a moment. Before,
        a tenth of it: ranks whose steps took no time would agree less often than a few slow steps last."""
        time.sleep(self.pace if self.last.exists() else self.pace / 10)


def install(rank: Rank, process: Any) -> None:
    """Watch the phases and the trainer of the rank that this process is."""
    phase, build = process.phase, process.build_trainer

    @contextmanager
    def watched(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        with phase(name, *args, **kwargs):
            rank.at(name)
            yield
        rank.at(f"after {name}")

    @functools.wraps(build)
    def built(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        watch(trainer, rank)
        return trainer

    process.phase, process.build_trainer = watched, built


class AtImport(MetaPathFinder):
    """Installs `rank` where the module of a rank's training is imported, which a launcher never does."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "unsloth_accel.training.process":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_install(module: Any) -> None:
            run(module)
            install(self.rank, module)

        spec.loader.exec_module = run_and_install  # type: ignore[method-assign]
        return spec


if VARIABLE in os.environ:
    given = json.loads(os.environ[VARIABLE])
    sys.meta_path.insert(0, AtImport(Rank(given["points"], Path(given["directory"]), given["pace"])))
