"""Batch sharding: a batch over N parts, by rows or by tokens, and their results back in the original order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..data.balance import divide
from ..errors import ConfigError, Problem, counted

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The parts of a batch."""

    parts: tuple[dict[str, Any], ...]
    """Batches with the same keys; one without rows has tensors of length 0."""
    rows: tuple[tuple[int, ...], ...]
    """Numbers of each part's rows in the whole batch."""

    def restore(self, results: Sequence[Any]) -> Any:
        """Return the rows of `results` in the order of the whole batch: a tensor where they are tensors, else a list.

        `results` has one entry per part, with one row for each of its rows. Raises `ConfigError` for other numbers.
        """
        import torch

        found = [len(part) for part in results]
        wanted = [len(rows) for rows in self.rows]
        if found != wanted:
            consequence = f"the parts have {wanted} rows."
            raise ConfigError(Problem(key="results", value=found, consequence=consequence, fix="one result per row"))
        order = [row for rows in self.rows for row in rows]
        if all(isinstance(part, torch.Tensor) for part in results):
            joined = torch.cat(list(results))
            return joined[torch.tensor(order, device=joined.device).argsort()]
        values = dict(zip(order, (value for part in results for value in part), strict=True))
        return [values[row] for row in sorted(values)]


def shard_batch(batch: Mapping[str, Any], parts: int, *, by: Literal["rows", "tokens"] = "rows") -> Shards:
    """Divide `batch`, a dict of tensors (rows, …) or lists of rows, over `parts`.

    `rows`: in their order, the first parts one row longer where they don't divide evenly. `tokens`: parts of as equal
    cost as possible (`data.balance`), by attention_mask, or else by the length of input_ids. A number, or a
    tensor of no dimension, goes to every part. Deterministic, so that every rank may do it for itself and take its
    own. Raises `ConfigError` for a batch whose values have different numbers of rows, or for no part at all.
    """
    count = _rows_of(batch)
    if not isinstance(parts, int) or parts < 1:
        raise ConfigError(Problem(key="parts", value=parts, consequence="is no number of parts.", fix="parts=2"))
    if by == "tokens":
        groups = [sorted(group) for group in divide(_lengths(batch, count), parts, padded=False)]
        groups += [[] for _ in range(parts - len(groups))]
    elif by == "rows":
        least, more = divmod(count, parts)
        starts = [least * part + min(part, more) for part in range(parts + 1)]
        groups = [list(range(start, end)) for start, end in itertools.pairwise(starts)]
    else:
        raise ConfigError(Problem(key="by", value=by, consequence="is no way to divide.", fix='"rows" or "tokens"'))
    taken = tuple({name: _chosen(value, group) for name, value in batch.items()} for group in groups)
    return Shards(parts=taken, rows=tuple(map(tuple, groups)))


def _rows_of(batch: Mapping[str, Any]) -> int:
    found = {name: len(value) for name, value in batch.items() if _has_rows(value)}
    if len({*found.values()}) != 1:
        told = ", ".join(f"{name} {counted(rows, 'row')}" for name, rows in found.items()) or "nothing has rows"
        fix = "tensors or lists with one entry per row"
        raise ConfigError(Problem(key="batch", value=told, consequence="is no batch of rows.", fix=fix))
    return next(iter(found.values()))


def _has_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _lengths(batch: Mapping[str, Any], rows: int) -> list[int]:
    if (mask := batch.get("attention_mask")) is not None:
        return [int(sum(row)) for row in mask]
    if (ids := batch.get("input_ids")) is not None:
        return [len(row) for row in ids]
    consequence = "needs attention_mask or input_ids, of which the batch has neither."
    raise ConfigError(Problem(key="by", value="tokens", consequence=consequence, fix='by="rows"'))


def _chosen(value: Any, rows: Sequence[int]) -> Any:
    if not _has_rows(value):
        return value
    if isinstance(value, list | tuple):
        return [value[row] for row in rows]
    chosen: torch.Tensor = value[list(rows)]
    return chosen
