"""Rows as they will be trained: read and checked without torch, each known by its file and number."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem, raise_errors
from .file_readers import Fault, rows_of_file
from .formats import NEEDED, FormatError, canonical, form_in_words, kind_of
from .sources import Source, locate

if TYPE_CHECKING:
    from ..config.run_config import DataConfig

MOST_SHOWN = 20


@dataclass(kw_only=True)
class Rows:
    """Canonical rows (`formats.canonical`) in reading order, and where each stands."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Number of each row in its file."""
    files: list[tuple[int, str]] = field(default_factory=list)
    """The index of the first row that comes from each file, and the file's name."""

    @property
    def kind(self) -> str:
        return kind_of(self.rows[0])

    def place(self, index: int) -> str:
        """Return a row's number, with its file where there are several."""
        if len(self.files) < 2:
            return str(self.numbers[index])
        starts = [start for start, _ in self.files]
        return f"{self.files[bisect_right(starts, index) - 1][1]}:{self.numbers[index]}"

    def places(self, indices: Sequence[int]) -> str:
        """Return `row 3` or `rows 3, 5`: the first 20, then how many more."""
        shown = ", ".join(self.place(index) for index in indices[:MOST_SHOWN])
        more = f" and {len(indices) - MOST_SHOWN:,} more" if len(indices) > MOST_SHOWN else ""
        return f"row{'s' * (len(indices) != 1)} {shown}{more}"


def read_rows(path: str | Path, key: str = "data.path", data: DataConfig | None = None) -> list[dict[str, Any]]:
    """The rows of `read_checked_rows`, without their places."""
    return read_checked_rows(path, key, data).rows


def read_checked_rows(
    path: str | Path, key: str = "data.path", data: DataConfig | None = None, most: int | None = None
) -> Rows:
    """All rows that `path` names (`most`: the first), as they will be trained; blank lines are skipped.

    Raises `ConfigError` with every bad row (the first 20, then their number): files that are missing or can't be read,
    broken UTF-8, malformed JSON, a row that is no mapping, lacks its columns, has nothing to learn or has another form
    than the first row. `key` is the config key that names the path; `data` says format and columns. A hub id is
    downloaded.
    """
    source = locate(path, key)
    rows, problems = Rows(), []
    for name, number, row in itertools.islice(_checked(source, key, data), most):
        where = f"{name}:{number}"
        if isinstance(row, Fault):
            problems.append(Problem(key=where, consequence=row.consequence, fix=row.fix))
            continue
        if not rows.files or rows.files[-1][1] != name:
            rows.files.append((len(rows.rows), name))
        rows.rows.append(row)
        rows.numbers.append(number)
    if len(problems) > MOST_SHOWN:
        rest = Problem(key=str(path), consequence=f"{len(problems) - MOST_SHOWN} more lines are bad.", fix="as above")
        problems = [*problems[:MOST_SHOWN], rest]
    raise_errors(problems)
    if not rows.rows:
        fix = f"write rows into it, or name another file as {key}"
        what = "file has" if len(source.files) == 1 else "data set has"
        raise ConfigError(Problem(key=key, value=str(path), consequence=f"the {what} no rows.", fix=fix))
    return rows


def stream(path: str | Path, key: str, data: DataConfig) -> Iterator[dict[str, Any]]:
    """The rows of `read_checked_rows` one by one, none kept; raises `ConfigError` at the first bad one."""
    for name, number, row in _checked(locate(path, key), key, data, streaming=True):
        if isinstance(row, Fault):
            raise ConfigError(Problem(key=f"{name}:{number}", consequence=row.consequence, fix=row.fix))
        yield row


def _checked(
    source: Source, key: str, data: DataConfig | None, *, streaming: bool = False
) -> Iterator[tuple[str, int, Any]]:
    """Yield file, number and canonical row, or the `Fault` in its place."""
    form, columns = (data.format, data.columns) if data else ("auto", {})
    hint = "" if columns else "; columns of other names: data.columns"
    first: str | None = None
    for name, number, row in _raw(source, key, data, streaming=streaming):
        if isinstance(row, Fault):
            yield name, number, row
            continue
        if not isinstance(row, dict):
            yield name, number, Fault("is not a JSON object.", f"give every row {NEEDED}")
            continue
        try:
            made = canonical(row, form, columns)
        except FormatError as error:
            yield name, number, Fault(str(error), f"give every row {NEEDED}{hint}")
            continue
        found = form_in_words(made)
        first = first or found
        if found == first:
            yield name, number, made
        else:
            fix = f"give every row {NEEDED}, the same in all"
            yield name, number, Fault(f"is a {found} row and the first is {first}.", fix)


def _raw(source: Source, key: str, data: DataConfig | None, *, streaming: bool) -> Iterator[tuple[str, int, Any]]:
    for file in source.files:
        for number, row in rows_of_file(file, key):
            yield str(file), number, row
    if source.hub:
        from .hub import load

        for number, row in enumerate(load(source.hub, key, data, streaming=streaming), start=1):
            yield source.hub, number, row


def no_step(count: int, size: int) -> Problem:
    """Return the problem of too few rows for one global batch where incomplete batches are dropped."""
    consequence = f"{count} rows are fewer than batch.global_size={size} and incomplete batches are left out: no step."
    fix = "training.dataloader_drop_last=false, a smaller batch.global_size, or more rows"
    return Problem(key="training.dataloader_drop_last", value=True, consequence=consequence, fix=fix)
