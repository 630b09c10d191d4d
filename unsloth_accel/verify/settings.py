"""Short runs that can be compared: the same rows and the same batch, in one process and in several."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.run_config import BatchConfig, DataConfig, RunConfig
from ..config.trainer_settings import settings as settings_of_trainer
from ..config.trainer_settings import shared_out_by_tokens
from ..data.length_estimate import texts_of
from ..data.mix import run_rows, run_stream
from ..errors import ConfigError, Problem, counted, errors, nearest, raise_errors
from ..hardware.hardware import Hardware
from ..launch.launcher import plan_problems
from ..methods import METHODS
from ..planning.batch import divisors
from ..planning.groups import group_size
from ..planning.optimizers import optimizer_for
from ..planning.plan import Plan
from ..planning.planner import plan
from ..strategies import STRATEGIES, choosable, usual
from ..validation.inputs import input_problems, once_served
from ..validation.run_checks import setting_problems

STEPS = 8
MOST_ACCUMULATION = 2
"""Most accumulation steps of several processes: enough to see that accumulating is right, and quick."""
ALONE = usual(1).name
"""Strategy that the others are compared with. When it is asked for itself, one process runs once more, which shows the
hardware's noise."""
_PER_DEVICE, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
# Training fields that begin so have no place in a run of a few steps without evaluation and checkpoints. A warm-up
# would keep the adapter where it is, and there would be little to compare.
_DROPPED = (
    *("eval_", "do_eval", "early_stopping_", "save_", "load_best_model", "metric_for_best", "greater_is_better"),
    *("push_to_hub", "hub_"),
    *("logging_", "warmup_", "num_train_epochs", "resume", "overwrite", "include_num_input_tokens_seen"),
)
_LEAST_RATE, _RATE = 1e-5, 1e-4
"""Learning rate below which a few steps leave an adapter where it was, and what is taken in its place."""
_CHARACTERS = 8
"""Most characters per token in text worth training on: rows are counted by it where they get packed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Runs to compare: every plan has its output_dir below one directory, and all read the same rows."""

    single: Plan
    others: tuple[Plan, ...]
    left_out: dict[str, str]
    """Strategies that can't run here, each with the reason."""
    notes: tuple[str, ...]
    """Differences from the run's description, with reasons."""
    rows: list[dict[str, Any]]

    @property
    def threads(self) -> int | None:
        """Threads of each process on a CPU, equal for all: kernels sum in an order that depends on it. None on GPUs."""
        given = [plan.environment.get("OMP_NUM_THREADS") for plan in (self.single, *self.others)]
        return min(int(count) for count in given if count) if any(given) else None

    @property
    def completions(self) -> Path:
        """File of what one process writes and all are trained on, where the method's model writes anything."""
        return Path(self.single.run.data.path).with_name("completions.jsonl")

    def write_rows(self) -> None:
        path = Path(self.single.run.data.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.completions.unlink(missing_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")


def settings(
    run: RunConfig,
    hardware: Hardware,
    directory: Path,
    *,
    strategies: Sequence[str] = (),
    steps: int = STEPS,
    num_processes: int | None = None,
) -> Settings:
    """Plan short runs of `run` below `directory`: in one process, and by each of `strategies` in several.

    Without `strategies`, by all usual ones that can run here. Raises `ConfigError` with every problem: what is wrong
    with the run, a strategy that is unknown or can't run here, a batch that can't be divided. Writes nothing.
    """
    asked = _known(strategies)
    short, notes = _shortened(run, steps)
    several = [strategy for strategy in asked or (one.name for one in choosable(2)) if strategy != ALONE]
    count = _count(run, hardware, num_processes) if several else 1
    problems = errors([*setting_problems(_as(short, "auto", count), hardware), *input_problems(short)])
    found: list[Plan] = []
    left_out: dict[str, str] = {}
    for strategy in several:
        try:
            decided = plan(_as(short, strategy, count), hardware)
            raise_errors(plan_problems(decided))
            found.append(decided)
        except ConfigError as error:
            left_out[strategy] = " ".join(problem.consequence for problem in error.problems)
            if asked or (strategy == several[-1] and not found):
                problems += [problem for problem in error.problems if problem not in problems]
    raise_errors(once_served(short, problems))
    asked_for = short.training.get("optim")
    for one in (STRATEGIES[decided.strategy] for decided in found if asked_for):
        taken = optimizer_for(one.name, asked_for)
        if not one.steps_bitsandbytes and taken != asked_for:
            short.training["optim"] = taken
            notes.append(f"training.optim={taken} in all runs: {one.name} can't step {asked_for}")
            break
    given = found[0].batch if found else plan(_as(short, ALONE, 1), hardware).batch
    alone = _single(short, hardware, given.global_size)
    most = min(decided.batch.per_device for decided in (*found, alone))
    kept = [one.keep_activations for one in (*found, alone) if one.keep_activations is not None]
    if kept:  # as many in all runs, so that their speeds can be compared
        short = replace(short, model=replace(short.model, keep_activations=min(kept)))
    share = given.global_size // count
    per_device = max(size for size in divisors(share) if size <= most)
    accumulation = _accumulation(short, share // per_device, per_device * count, several=bool(several))
    size = per_device * accumulation * count
    if size != given.global_size:
        made = counted(size, "row")
        notes.append(f"{made} per step instead of {given.global_size}: it is quicker and shows the same")
    short.training[_PER_DEVICE] = per_device
    short.training.pop(_ACCUMULATION, None)
    # Of a stream no further than `_enough` asks.
    rows: Iterable[dict[str, Any]] = map(json.loads, run_stream(short)) if short.data.streaming else run_rows(short)
    # The rows, as they are trained, in one file.
    data = DataConfig(path=str(directory / "rows.jsonl"), train_on=short.data.train_on, too_long=short.data.too_long)
    short = replace(short, batch=_rows(short, size), data=data)

    def final(strategy: str, number: int, name: str) -> Plan:
        return plan(replace(_as(short, strategy, number), output_dir=str(directory / name)), hardware)

    others = [final(decided.strategy, count, decided.strategy) for decided in found]
    if ALONE in asked:
        others.insert(0, final(ALONE, 1, "again"))
    return Settings(
        single=final(ALONE, 1, ALONE),
        others=tuple(others),
        left_out=left_out,
        notes=tuple(notes),
        rows=_enough(rows, steps, per_device, accumulation, count, short),
    )


def _accumulation(run: RunConfig, most: int, at_once: int, *, several: bool) -> int:
    """Return the accumulation steps of `at_once` rows that are enough to see that accumulating is right, up to `most`;
    whole groups of completions may need more."""
    enough, size = min(most, MOST_ACCUMULATION * (1 if several else 2)), group_size(run)
    return next((count for count in range(enough, most) if count * at_once % size == 0), most) if size > 1 else enough


def _known(strategies: Sequence[str]) -> list[str]:
    """Return `strategies` once each; raises `ConfigError` for those that don't exist."""
    asked = list(dict.fromkeys(strategies))
    raise_errors(
        [
            Problem(key="--strategy", value=name, consequence="unknown strategy.", fix=nearest(name, STRATEGIES.names))
            for name in asked
            if name not in STRATEGIES
        ]
    )
    return asked


def _count(run: RunConfig, hardware: Hardware, num_processes: int | None) -> int:
    """Return the number of processes to compare one with; raises `ConfigError` where there are no two."""
    given = num_processes or run.distributed.num_processes
    if num_processes == 1:
        consequence = "one process is what the others are compared with."
        raise ConfigError(Problem(key="--num-processes", value=1, consequence=consequence, fix="2 or more"))
    if given not in ("auto", 1):
        return int(given)
    if run.distributed.device == "cpu" or not hardware.devices:
        return 2
    if len(hardware.devices) < 2:
        consequence = "one GPU is visible, and several processes need one each."
        fix = "make more visible, or distributed.device=cpu to compare on the CPU"
        raise ConfigError(Problem(key="--num-processes", consequence=consequence, fix=fix))
    return len(hardware.devices)


def _shortened(run: RunConfig, steps: int) -> tuple[RunConfig, list[str]]:
    """Return `run` with `steps` steps and without what a comparison can't have, and notes on that for the reader."""
    notes = []
    training = {key: value for key, value in run.training.items() if not key.startswith(_DROPPED)}
    training |= {"max_steps": steps, "save_strategy": "no", "overwrite": True}
    if training.get("lr_scheduler_type") == "reduce_lr_on_plateau":
        training["lr_scheduler_type"] = "constant"
    lora = run.lora
    noise = training.pop("neftune_noise_alpha", None)
    if lora.dropout or noise:
        lora = replace(lora, dropout=0.0)
        notes.append("no dropout and no noise: each process would draw its own")
    if METHODS[run.method].generates:
        notes.append("the completions of one process are trained on by all: each rank would write others")
        for name in ("steps_per_generation", "generation_batch_size"):
            if training.pop(name, None):
                notes.append(
                    f"no training.{name}: each rank shuffles what it wrote before it takes several steps of it"
                )
    rate = settings_of_trainer(run).get("learning_rate")
    if isinstance(rate, float) and 0 < rate < _LEAST_RATE:
        training["learning_rate"] = _RATE
        notes.append(f"training.learning_rate={_RATE:g}, not {rate:g}: {steps} steps would change next to nothing")
    return replace(
        run,
        lora=lora,
        training=training,
        data=replace(run.data, eval_path=None, eval_fraction=None),
        evaluation=replace(run.evaluation, exact_match=False),
        logging=replace(run.logging, progress=False, report_to="none"),
    ), notes


def _as(run: RunConfig, strategy: str, count: int) -> RunConfig:
    return replace(run, distributed=replace(run.distributed, strategy=strategy, num_processes=count))


def _single(run: RunConfig, hardware: Hardware, size: int) -> Plan:
    """One process that takes `size` rows per step; raises `ConfigError` where it can't hold the model."""
    training = {key: value for key, value in run.training.items() if key != _ACCUMULATION}
    run = replace(run, training=training, batch=_rows(run, size))
    try:
        return plan(_as(run, ALONE, 1), hardware)
    except ConfigError as error:
        why = "one process, which the others are compared with, can't run it: "
        raise ConfigError([replace(p, consequence=why + p.consequence) for p in error.problems]) from None


def _rows(run: RunConfig, size: int) -> BatchConfig:
    """Return `run`'s batch with `size` rows per step."""
    return replace(run.batch, global_size=size, global_tokens=None)


def _enough(
    rows: Iterable[dict[str, Any]], steps: int, per_device: int, accumulation: int, processes: int, run: RunConfig
) -> list[dict[str, Any]]:
    """Return the first of `rows`, repeated if there are fewer, of which `steps` steps make more than one epoch.

    An epoch ends after a little more than half of the steps, with a step of one row more than there are processes, so
    that some compute a row for nothing. Where rows are shared out by number accelerate would repeat some of them; there
    it ends with one micro-batch a process. Rows that get packed, whose number is not known, make all steps full.
    """
    size, repeated = per_device * accumulation * processes, itertools.cycle(rows)
    if METHODS[run.method].generates:  # incomplete batches are left out
        return list(itertools.islice(repeated, (steps // 2 + 1) * size // group_size(run)))
    if not run.training.get("packing"):
        last = min(processes + 1, size - 1) if shared_out_by_tokens(run) else size // accumulation % size
        epoch = steps // 2 * size + last if steps > 1 else size
        return list(itertools.islice(repeated, epoch))
    need, taken = steps * size * run.model.max_seq_length * _CHARACTERS, []
    while need > 0:
        taken.append(next(repeated))
        need -= max(sum(map(len, texts_of(taken[-1]))), 1)
    return taken
