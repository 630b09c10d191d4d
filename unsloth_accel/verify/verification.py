"""Verification: one process, then each strategy, each compared with the one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..adapters.saving import versions
from ..artifacts.own_files import is_of_a_run, taken
from ..artifacts.run_directory import RunDirectory
from ..config.trainer_settings import depends_on_ranks
from ..errors import LaunchError, Problem, raise_errors
from ..planning.plan import Plan
from .runs import Trained, train
from .settings import Settings
from .verdict import Comparison, Tolerance, compare, precision_of, tolerance

Tell = Callable[[str, int, int, float], None]
"""Function called while a run goes on, with its name, steps done, steps in all, seconds so far."""


@dataclass(frozen=True, kw_only=True)
class StrategyOutcome:
    """Results of one strategy and their comparison, or the error that ended it."""

    plan: Plan
    name: str
    trained: Trained | None = None
    comparison: Comparison | None = None
    error: str = ""

    @property
    def faults(self) -> tuple[str, ...]:
        return self.comparison.faults if self.comparison else (f"it failed: {self.error}",)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Results of `verify`."""

    settings: Settings
    precision: str
    tolerance: Tolerance
    single: Trained
    outcomes: list[StrategyOutcome] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every strategy trained as one process does."""
        return all(not outcome.faults for outcome in self.outcomes)

    @property
    def warm_up(self) -> int:
        """Steps that throughput leaves out: kernels are compiled in them."""
        return min(3, len(self.single.loss) // 2)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON can hold it."""
        plan = self.settings.single
        runs = {plan.strategy: self._run(self.settings.single, self.single)}
        for outcome in self.outcomes:
            values: dict[str, Any] = {"error": outcome.error}
            if outcome.trained:
                values = self._run(outcome.plan, outcome.trained)
            if outcome.comparison:
                values["difference"] = {k: v for k, v in asdict(outcome.comparison).items() if k != "faults"}
            runs[outcome.name] = values | {"same": not outcome.faults, "faults": list(outcome.faults)}
        return {
            "date": time.strftime("%Y-%m-%d"),
            "gpu": [device.name for device in plan.hardware.devices] if plan.device == "cuda" else [],
            "hardware": str(plan.hardware),
            "versions": versions(),
            "model": plan.run.model.name,
            "precision": self.precision,
            "tolerance": asdict(self.tolerance),
            "cpu_threads_per_process": self.settings.threads,
            "rows_per_step": plan.batch.global_size,
            "warm_up_steps": self.warm_up,
            "notes": list(self.settings.notes),
            "left_out": self.settings.left_out,
            "runs": runs,
            "same": self.same,
        }

    def _run(self, plan: Plan, trained: Trained) -> dict[str, Any]:
        return {
            "strategy": plan.strategy,
            "processes": plan.num_processes,
            "batch": asdict(plan.batch),
            "keep_activations": plan.keep_activations,
            "loss": trained.loss,
            "grad_norm": trained.grad_norm,
            "seconds": trained.seconds,
            "tokens": trained.tokens,
            "tokens_per_second": round(trained.tokens_per_second(self.warm_up), 1),
            "ranks": trained.ranks,
            "wall_seconds": trained.wall_seconds,
        }


def verify(settings: Settings, changes: Sequence[str] = (), tell: Tell = lambda *_: None) -> Verification:
    """Train everything of `settings`, one run after the other, and compare; `changes` are to tolerances.

    A strategy whose run fails is not the same, and the others go on. Raises `LaunchError` where the one process fails,
    which leaves nothing to compare with, and `ConfigError` for `changes` that are none.
    """
    precision = precision_of(settings.single)
    single_plan = settings.single
    ranks, sums = depends_on_ranks(single_plan.run), single_plan.method.sums_answers
    allowed = tolerance(precision, changes, single_plan.device, ranks, sums_answers=sums)
    raise_errors(taken_problems(settings))
    settings.write_rows()
    try:
        single = _trained(settings.single, tell, settings)
    except LaunchError as error:
        raise LaunchError(f"one process alone fails, so there is nothing to compare with: {error}", 1) from None
    found = Verification(settings=settings, precision=precision, tolerance=allowed, single=single)
    for plan in settings.others:
        name = Path(plan.run.output_dir).name
        try:
            trained = _trained(plan, tell, settings)
            compared = compare(single, trained, allowed, loss_scale=plan.method.loss_scale)
            found.outcomes.append(StrategyOutcome(plan=plan, name=name, trained=trained, comparison=compared))
        except LaunchError as error:
            found.outcomes.append(StrategyOutcome(plan=plan, name=name, error=str(error)))
    return found


def taken_problems(settings: Settings) -> list[Problem]:
    """Return a problem for each place where a user's own stands in the place of what is written."""
    rows, alone = Path(settings.single.run.data.path), settings.single.run.output_dir
    problems: list[Problem] = []
    if rows.exists() and not is_of_a_run(alone):
        consequence, fix = f"{rows} is there, and the rows to compare with would replace it.", "name another directory"
        problems.append(Problem(key="--keep", value=str(rows.parent), consequence=consequence, fix=fix))
    for plan in (settings.single, *settings.others):
        files = RunDirectory(plan.run.output_dir)
        problems += taken(files.path, [files.record, files.verify_log])
    return problems


def _trained(plan: Plan, tell: Tell, settings: Settings) -> Trained:
    directory = Path(plan.run.output_dir)
    log = RunDirectory(directory).step_log
    steps = plan.run.training["max_steps"]
    started = time.perf_counter()

    def wait(seconds: float) -> None:
        done = log.read_text(encoding="utf-8").count("\n") if log.is_file() else 0
        tell(directory.name, min(done, steps - 1), steps, time.perf_counter() - started)
        time.sleep(seconds)

    trained = train(plan, wait, threads=settings.threads, completions=settings.completions)
    tell(directory.name, steps, steps, time.perf_counter() - started)
    return trained
