"""Batch: the rows of an optimizer step, divided exactly among processes and accumulation steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from ..config.run_config import DEFAULT_PER_DEVICE, BatchConfig, RunConfig
from ..errors import Problem, counted
from ..strategies import usual
from .ways import Refused, Way


@dataclass(frozen=True, kw_only=True)
class Batch:
    """global_size = per_device × accumulation × data_parallel, exactly."""

    global_size: int
    per_device: int
    accumulation: int
    data_parallel: int
    """Processes that compute different rows: all of them, unless a strategy has several compute the same ones."""

    def __str__(self) -> str:
        parts = f"{self.per_device} × {self.accumulation} × {self.data_parallel}"
        return f"{counted(self.global_size, 'row')} per step = {parts} (per device × accumulation × processes)"


def divide_batch(
    global_size: int,
    count: int,
    per_device: int | None = None,
    accumulation: int | None = None,
    most: int = DEFAULT_PER_DEVICE,
    key: str = "batch.global_size",
) -> Batch:
    """Split `global_size` rows exactly over `count` data-parallel processes; per device as many as divide them, up to
    `most`.

    Where `per_device` is given, `accumulation` gives way: the rows of a step are the promise, and the same description
    may run in another number of processes. Raises `Refused` when the rows can't be kept, with the nearest numbers that
    work; `key` is the user's name of those rows.
    """
    check_divisible(BatchConfig(global_size=global_size), 1, count, per_device, accumulation, key=key)
    rows = global_size // count
    if per_device is None and accumulation is not None:
        per_device = rows // accumulation
    elif per_device is None:
        per_device = max(size for size in divisors(rows) if size <= max(most, 1))
    return Batch(global_size=global_size, per_device=per_device, accumulation=rows // per_device, data_parallel=count)


def keep_rows(run: RunConfig, count: int) -> tuple[RunConfig, str]:
    """`run` as `count` processes train it, with the rows per step that it describes, and what had to change for that.

    Nothing changes where it was planned for `count`, or says nothing about its rows. Raises `ConfigError` where the
    rows can't be kept.
    """
    strategy, name = run.strategy, run.distributed.strategy
    if strategy and strategy.one_process != (count == 1):
        strategy, name = None, usual(1).name if count == 1 else "auto"
    rows = run.batch.rows(run.model.max_seq_length)
    planned: int | str = run.distributed.num_processes
    run = replace(run, distributed=replace(run.distributed, strategy=name, num_processes=count))
    if rows is None:
        return run, ""
    given: int | None = run.training.get(_ACCUMULATION)
    parallel = strategy.data_parallel(count) if strategy else count
    per_device = run.training.get(_PER_DEVICE)
    check_divisible(run.batch, run.model.max_seq_length, parallel, per_device, given)
    batch = divide_batch(rows, parallel, per_device, given)
    own = {_PER_DEVICE: batch.per_device, _ACCUMULATION: batch.accumulation}
    told = ""
    if isinstance(planned, int) and planned != count:
        were = "was" if planned == 1 else "were"
        told = f"{counted(planned, 'process')} {were} planned and {count} started: {batch}"
    if not told and given not in (None, batch.accumulation):
        told = gives_way(given, batch)
    return replace(run, training=run.training | own), told


def gives_way(accumulation: int, batch: Batch) -> str:
    """What is said where `accumulation` was asked for and `batch` has another."""
    return f"training.{_ACCUMULATION}={accumulation} gives way: {batch}"


_PER_DEVICE, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


def divisors(rows: int) -> list[int]:
    """Return the divisors of `rows` in ascending order."""
    small = [size for size in range(1, int(rows**0.5) + 1) if rows % size == 0]
    return sorted({*small, *(rows // size for size in small)})


def check_divisible(
    batch: BatchConfig,
    length: int,
    count: int,
    per_device: int | None,
    accumulation: int | None,
    with_processes: Callable[[int], list[Way]] | None = None,
    *,
    key: str = "batch.global_size",
) -> None:
    """Raise `Refused`, with the nearest numbers that work, unless the rows or tokens of a step can be kept.

    `length` are the tokens of a full row. `with_processes` returns the ways to another number of processes; without it
    that number is only told. `key` is the user's name of the rows.
    """
    size, factors = batch.global_size or 0, [(count, "processes")]
    if per_device is not None:
        factors.insert(0, (per_device, "rows per device"))
    elif accumulation is not None:
        factors.insert(0, (accumulation, "accumulation"))
    if batch.global_tokens:
        key, size = "batch.global_tokens", batch.global_tokens
        factors.insert(0, (length, "tokens per row"))
    unit = prod(number for number, _ in factors)
    if size % unit == 0:
        return
    below = size // unit * unit
    groups = [[Way(changes={key: near})] for near in (below, below + unit) if near > 0]
    if per_device is not None and size % (unit // per_device) == 0:
        fewer = max(rows for rows in divisors(size // (unit // per_device)) if rows <= per_device)
        groups.append([Way(changes={f"training.{_PER_DEVICE}": fewer})])
    share = unit // count
    counts = divisors(size // share) if size % share == 0 else []
    near = [*[number for number in counts if number < count][-1:], *[number for number in counts if number > count][:1]]
    told = f"{' or '.join(map(str, near))} process{'es' * (near != [1])} in place of {count}" if near else ""
    if with_processes:
        groups += [with_processes(number) for number in near]
    product = " × ".join(f"{number} {what}" for number, what in factors if (number, what) != (1, "processes"))
    consequence = f"can't be {product} times a whole number, so it could not be kept."
    problem = Problem(key=key, value=size, consequence=consequence, fix="")
    raise Refused(problem, groups, "" if with_processes else told)
