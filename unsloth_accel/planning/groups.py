"""Groups: the completions of one prompt, which are compared with each other and so are written together.

TRL writes `generation_batch_size` completions at a time, over all processes, and takes optimizer steps from them; each
prompt gets `num_generations` of them. No group may be cut (trl/trainer/grpo_config.py: `__post_init__`), so what is
written at a time must be a whole number of groups, in training and in an evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

from ..config.run_config import DEFAULT_PER_DEVICE, RunConfig
from ..config.trainer_settings import settings
from ..errors import Problem, counted
from ..methods import METHODS
from .batch import Batch, divisors
from .ways import Refused, Way

GROUP, EVAL_GROUP = "training.num_generations", "training.num_generations_eval"
AT_ONCE, STEPS = "training.generation_batch_size", "training.steps_per_generation"
PER_DEVICE, ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
EVAL_SIZE = "training.per_device_eval_batch_size"
_USUAL = 8
"""TRL's `num_generations`, where TRL is not installed."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """What is written at a time, over all processes."""

    size: int
    """Completions of a prompt."""
    at_once: int
    """Completions that are written before the next optimizer step that needs new ones."""
    iterations: int
    """Times that each completion is trained on."""
    batch: Batch

    @property
    def prompts(self) -> int:
        """Prompts that are answered at a time."""
        return self.at_once // self.size

    def steps(self, prompts: int) -> int:
        """Return the optimizer steps of an epoch of so many prompts; those that fill no whole batch are left out."""
        return prompts // self.prompts * self.at_once * self.iterations // self.batch.global_size

    def __str__(self) -> str:
        often = "" if self.iterations == 1 else f", each trained {self.iterations} times"
        ahead = ""
        if self.at_once != self.batch.global_size:
            ahead = f"; {counted(self.at_once, 'completion')} are written at a time"
        prompts = self.batch.global_size / self.size
        return (
            f"{counted(self.batch.global_size, 'completion')} per step, {self.size} to each of {prompts:g} prompts"
            f"{ahead}{often}"
        )


def group_size(run: RunConfig) -> int:
    """Return the completions of a prompt; 1 where the method writes none."""
    return int(_of(run).get("num_generations") or _USUAL) if METHODS[run.method].generates else 1


def groups(run: RunConfig, batch: Batch) -> Groups | None:
    """Return what `run` writes at a time; None where its method writes nothing.

    Raises `Refused` where groups would be cut, with the nearest numbers that keep them whole.
    """
    if not METHODS[run.method].generates:
        return None
    size, asked, steps = group_size(run), run.training.get(AT_ONCE[9:]), run.training.get(STEPS[9:])
    each = batch.per_device * batch.data_parallel
    at_once = int(asked or each * int(steps or batch.accumulation))
    if asked and steps:
        consequence = "contradicts training.generation_batch_size: one follows from the other."
        raise Refused(Problem(key=STEPS, value=steps, consequence=consequence, fix=""), [[Way(changes={STEPS: None})]])
    if asked and at_once % each:
        consequence = f"is not divided by the {each} completions that all processes train at once."
        ways = [[Way(changes={AT_ONCE: near})] for near in _near(at_once, lcm(each, size))]
        raise Refused(Problem(key=AT_ONCE, value=at_once, consequence=consequence, fix=""), ways)
    if at_once % size == 0:
        return Groups(size=size, at_once=at_once, iterations=int(_of(run).get("num_iterations") or 1), batch=batch)
    key, value, unit = "batch.global_size", batch.global_size, lcm(size, batch.data_parallel)
    if asked:
        key, value, unit = AT_ONCE, at_once, lcm(each, size)
    elif steps:
        key, value, unit = STEPS, int(steps), size // gcd(size, each)
    elif run.batch.rows(run.model.max_seq_length) is None:
        given = run.training.get(ACCUMULATION[9:])
        key, value = (ACCUMULATION, int(given)) if given else (PER_DEVICE, batch.per_device)
        unit = size // gcd(size, at_once // value)
    consequence = (
        f"would cut groups: {counted(at_once, 'completion')} are written at a time, which is no whole number of groups "
        f"of {size} (training.num_generations), and each is compared within its group."
    )
    ways = [[Way(changes={key: near})] for near in _near(value, unit)]
    fewer = [number for number in divisors(at_once) if number >= 2]
    nearest = sorted(fewer, key=lambda number: (abs(number - size), -number))[:1]
    ways += [[Way(changes={GROUP: number})] for number in nearest]
    raise Refused(Problem(key=key, value=value, consequence=consequence, fix=""), ways)


def whole_groups(run: RunConfig, count: int, per_device: int | None, accumulation: int | None) -> tuple[int, int]:
    """Return rows per device and accumulation that keep groups whole where no global batch is given: what is given
    stays, and the rest is as small a step as it can be, with up to 8 rows per device."""
    size, steps = group_size(run), run.training.get(STEPS[9:])
    others = count * int(steps or accumulation or 1)
    if per_device is None:
        sizes = [rows for rows in range(1, DEFAULT_PER_DEVICE + 1) if rows * others % size == 0]
        per_device = max(sizes, default=max(rows for rows in divisors(size) if rows <= DEFAULT_PER_DEVICE))
    if accumulation is None and not steps:
        accumulation = size // gcd(size, per_device * count)
    return per_device, accumulation or 1


def keeps_whole(run: RunConfig, per_device: int, count: int) -> bool:
    """Return whether groups stay whole with so many rows per device, where what is written follows from them."""
    steps = run.training.get(STEPS[9:])
    asked = run.training.get(AT_ONCE[9:])
    if asked:
        return int(asked) % (per_device * count) == 0
    return not steps or per_device * count * int(steps) % group_size(run) == 0


def written_at_once(run: RunConfig, rows: int, per_device: int, count: int) -> int:
    """Return the completions that each of `count` processes writes at once, whose optimizer steps take `rows` each of
    it, `per_device` at once."""
    asked, steps = run.training.get(AT_ONCE[9:]), run.training.get(STEPS[9:])
    return int(asked) // count if asked else per_device * int(steps) if steps else rows


def written_together(run: RunConfig) -> tuple[str, int] | None:
    """Return the completions that all processes write at a time, and the key that says so; None where `run` leaves it
    to the plan."""
    asked, steps = run.training.get(AT_ONCE[9:]), run.training.get(STEPS[9:])
    rows = run.batch.rows(run.model.max_seq_length)
    if asked:
        return AT_ONCE, int(asked)
    if not steps:
        return ("batch.global_size", rows) if rows else None
    each, count = run.training.get(PER_DEVICE[9:]), run.distributed.num_processes
    accumulation = run.training.get(ACCUMULATION[9:])
    if each and isinstance(count, int):
        return STEPS, int(each) * count * int(steps)
    return (STEPS, rows // int(accumulation) * int(steps)) if rows and accumulation else None


def eval_rows(run: RunConfig, count: int) -> int | None:
    """Return the completions that each of `count` processes writes at once in an evaluation: those that are asked for,
    or about twice those of training, in whole groups; None where nothing is evaluated.

    Raises `Refused` where what is asked for would cut groups.
    """
    if not run.data.holds_out:
        return None
    given = _of(run)
    size = int(given.get("num_generations_eval") or group_size(run))
    unit, asked = size // gcd(size, count), run.training.get(EVAL_SIZE[9:])
    if asked is None:
        usual = int(given.get("per_device_eval_batch_size") or DEFAULT_PER_DEVICE)
        return max(unit, usual // unit * unit)
    if int(asked) % unit == 0:
        return int(asked)
    consequence = (
        f"would cut groups: {asked} × {counted(count, 'process')} is no whole number of groups of {size} held-out "
        "completions."
    )
    ways = [[Way(changes={EVAL_SIZE: near})] for near in _near(int(asked), unit)]
    fewer = max(number for number in divisors(int(asked) * count) if number <= size)
    ways += [[Way(changes={EVAL_GROUP: fewer})]]
    raise Refused(Problem(key=EVAL_SIZE, value=asked, consequence=consequence, fix=""), ways)


def _of(run: RunConfig) -> dict[str, Any]:
    return settings(run)


def _near(value: int, unit: int) -> list[int]:
    """Return the multiples of `unit` next to `value`, the smaller first."""
    below = value // unit * unit
    return [near for near in (below, below + unit) if near > 0]
