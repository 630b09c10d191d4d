"""Training of what is compared: a launch in a child process, and what it left, read back."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.recorded_completions import RECORDED
from ..artifacts.own_files import remove
from ..artifacts.run_directory import START_RECORD, RunDirectory, start_of
from ..config.start_adapter import ADAPTER_WEIGHTS
from ..errors import LaunchError
from ..launch.child import Child
from ..launch.launcher import launch_of, made_room
from ..planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Results of one run in `directory`; lists have one entry per step."""

    directory: Path
    num_processes: int
    loss: list[float]
    grad_norm: list[float]
    seconds: list[float]
    tokens: list[int]
    """Real tokens of each step, over all ranks."""
    ranks: list[dict[str, Any]]
    """Figures of each rank, as `record.Record` wrote them."""
    wall_seconds: float = 0.0

    @property
    def adapter(self) -> Path:
        return RunDirectory(self.directory).adapter / ADAPTER_WEIGHTS

    @property
    def start(self) -> Path:
        """The adapter before training; not there where a strategy can't gather it."""
        return start_of(RunDirectory(self.directory).record)

    def tokens_per_second(self, warm_up: int) -> float:
        """Return the tokens per second over the steps after `warm_up`."""
        seconds = sum(self.seconds[warm_up:])
        return sum(self.tokens[warm_up:]) / seconds if seconds else 0.0

    def memory(self, name: str) -> list[float]:
        """Return GiB by rank; empty where it was not measured."""
        return [rank[name] for rank in self.ranks if name in rank]


def train(
    decided: Plan,
    wait: Callable[[float], None],
    environment: Mapping[str, str] = os.environ,
    threads: int | None = None,
    module: str | None = None,
    completions: Path | None = None,
) -> Trained:
    """Run `decided` in processes of its own until it ends; `wait` is called meanwhile, with seconds to spend.

    `threads` are those of each process on a CPU; by default they share its cores. `module` is started in each process.
    Where the model writes what it is trained on, that is kept in the file `completions`, or taken from there if it
    exists. Raises `LaunchError` where it failed, in the failing rank's own words. Whatever `wait` raises ends the run.
    """
    files = RunDirectory(decided.run.output_dir)
    remove([*files.rank_records(), start_of(files.record)], files.path)
    command = launch_of(decided, module=module)
    variables = {START_RECORD: str(files.record)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    if completions and decided.method.generates:
        variables[RECORDED] = str(completions.absolute())
    started = time.perf_counter()
    with made_room(decided) as launched, files.verify_log.open("wb") as log:
        command = replace(command, environment=command.environment | variables | launched)
        try:
            Child(command, environment, log.fileno()).run(wait)
        except LaunchError as error:
            raise LaunchError(str(error).replace("above", f"in {files.verify_log}"), error.exit_status) from None
    return replace(read_trained(decided, files.path), wall_seconds=round(time.perf_counter() - started, 1))


def read_trained(decided: Plan, directory: Path) -> Trained:
    """Read what a finished run left in `directory`."""
    files = RunDirectory(directory)
    lines = map(json.loads, files.step_log.read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if "loss" in line]
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in files.rank_records()]
    return Trained(
        directory=directory,
        num_processes=decided.num_processes,
        loss=[step["loss"] for step in steps],
        grad_norm=[step["grad_norm"] for step in steps],
        seconds=[round(b - a, 4) for a, b in itertools.pairwise([0.0, *(step["seconds"] for step in steps)])],
        tokens=[b - a for a, b in itertools.pairwise([0, *(step["num_input_tokens_seen"] for step in steps)])],
        ranks=sorted(ranks, key=lambda rank: rank["rank"]),
    )
