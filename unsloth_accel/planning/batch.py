"""Batch: the rows of an optimizer step, divided exactly among processes and accumulation steps."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.run_config import DEFAULT_PER_DEVICE
from ..errors import ConfigError, Problem


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

    Raises `ConfigError` when that is impossible, with the nearest global sizes that work.
    """
    check_divisible(global_size, count, per_device, accumulation)
    rows = global_size // count
    if per_device is None and accumulation is not None:
        per_device = rows // accumulation
    elif per_device is None:
        per_device = max(size for size in divisors(rows) if size <= max(most, 1))
    return Batch(global_size=global_size, per_device=per_device, accumulation=rows // per_device, data_parallel=count)


def divisors(rows: int) -> list[int]:
    """Of `rows`, ascending."""
    small = [size for size in range(1, int(rows**0.5) + 1) if rows % size == 0]
    return sorted({*small, *(rows // size for size in small)})


def check_divisible(global_size: int, count: int, per_device: int | None, accumulation: int | None) -> None:
    """Raise `ConfigError`, with the nearest global sizes that work, unless `divide_batch` can keep the global size."""
    unit = count * (per_device or 1) * (accumulation or 1)
    exact = per_device is not None and accumulation is not None
    if global_size % unit or (exact and global_size != unit):
        product = " × ".join(
            f"{number} {what}"
            for number, what in ((per_device, "rows per device"), (accumulation, "accumulation"), (count, "processes"))
            if number is not None
        )
        below = global_size // unit * unit
        works = [unit] if exact else [size for size in (below, below + unit) if size > 0]
        problem = Problem(
            key="batch.global_size",
            value=global_size,
            consequence=f"can't be {product}{'' if exact else ' times a whole number'}, so it could not be kept.",
            fix=" or ".join(f"batch.global_size={size}" for size in works),
        )
        raise ConfigError(problem)
