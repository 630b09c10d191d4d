"""Batch: the rows of an optimizer step, divided exactly among processes and accumulation steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from ..config.run_config import DEFAULT_PER_DEVICE, RunConfig
from ..errors import ConfigError, Problem
from ..strategies import usual


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
        return f"{self.global_size} rows per step = {parts} (per device × accumulation × processes)"


def divide_batch(
    global_size: int,
    count: int,
    per_device: int | None = None,
    accumulation: int | None = None,
    most: int = DEFAULT_PER_DEVICE,
) -> Batch:
    """Split `global_size` rows exactly over `count` data-parallel processes; per device as many as divide them, up to
    `most`.

    Where `per_device` is given, `accumulation` gives way: the rows of a step are the promise, and the same description
    may run in another number of processes. Raises `ConfigError` when the rows can't be kept, with the nearest numbers
    that work.
    """
    check_divisible(global_size, count, per_device, accumulation)
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
    batch = divide_batch(rows, parallel, run.training.get(_PER_DEVICE), given)
    own = {_PER_DEVICE: batch.per_device, _ACCUMULATION: batch.accumulation}
    told = f"{planned} processes were planned and {count} started: {batch}" if planned not in (count, "auto") else ""
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


def check_divisible(global_size: int, count: int, per_device: int | None, accumulation: int | None) -> None:
    """Raise `ConfigError`, with the nearest numbers that work, unless `divide_batch` can keep the global size."""
    factors = [(count, "processes")]
    if per_device is not None:
        factors.insert(0, (per_device, "rows per device"))
    elif accumulation is not None:
        factors.insert(0, (accumulation, "accumulation"))
    unit = prod(number for number, _ in factors)
    if global_size % unit == 0:
        return
    below = global_size // unit * unit
    works = [f"batch.global_size={size}" for size in (below, below + unit) if size > 0]
    each = unit // count
    counts = divisors(global_size // each) if global_size % each == 0 else []
    near = [*[number for number in counts if number < count][-1:], *[number for number in counts if number > count][:1]]
    if per_device is not None and global_size % count == 0:
        fewer = max(size for size in divisors(global_size // count) if size <= per_device)
        works.append(f"training.{_PER_DEVICE}={fewer}")
    instead = f", or {' or '.join(map(str, near))} process{'es' * (near != [1])} in place of {count}" if near else ""
    raise ConfigError(
        Problem(
            key="batch.global_size",
            value=global_size,
            consequence=f"can't be {' × '.join(f'{number} {what}' for number, what in factors)} times a whole number, "
            "so it could not be kept.",
            fix=" or ".join(works) + instead,
        )
    )
