"""Rows as they will be trained: read and checked without torch, each known by its file and number."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, Problem, counted, first_line, raise_errors
from ..methods import METHODS, USUAL_METHOD, Method
from .chat_messages import FormatError, is_left_out
from .file_readers import Fault, rows_of_file, rows_of_table
from .formats import canonical, form_in_words, kind_of, needed, unused_columns, with_template_arguments
from .prompts import NESTED
from .sources import Source, locate

if TYPE_CHECKING:
    from ..config.run_config import DataConfig

MOST_SHOWN = 20


@dataclass(kw_only=True)
class Rows:
    """Canonical rows (`formats.canonical`) in reading order, and where each stands.

    A row is kept as JSON text: Arrow would make the keys and types of all rows agree.
    """

    texts: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Number of each row in its file."""
    files: list[tuple[int, str]] = field(default_factory=list)
    """The index of the first row that comes from each file, and the file's name."""
    unused: Counter[str] = field(default_factory=Counter)
    """Columns that no part of a canonical row comes from, and how many rows have each."""
    weighted: list[int] = field(default_factory=list)
    """Indices of the rows with a message that says that it is not to be trained."""
    starts: list[int] = field(default_factory=list)
    """The index of the first row of each source of a mix."""
    notes: tuple[str, ...] = ()
    """Sentences on how these rows were chosen."""
    sources: dict[str, int] = field(default_factory=dict)
    """Number of rows from each source of a mix, by its path; empty without a mix."""

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self.texts)

    @property
    def kind(self) -> str:
        return kind_of(next(iter(self)))

    def widest(self) -> dict[str, Any]:
        """Return the first row with every column that any row has for rewards beside a prompt."""
        first: dict[str, Any] = next(iter(self))
        if NESTED in first:
            first[NESTED] = {name: None for row in self for name in row[NESTED]}
        return first

    def place(self, index: int) -> str:
        """Return a row's number, with its file where there are several."""
        if len(self.files) < 2:
            return str(self.numbers[index])
        return f"{self._file(index)}:{self.numbers[index]}"

    def _file(self, index: int) -> str:
        return self.files[bisect_right(self.files, index, key=itemgetter(0)) - 1][1]

    def source(self, index: int) -> int:
        """Return the number of the source of a mix that a row comes from."""
        return bisect_right(self.starts, index) - 1

    @classmethod
    def joined(cls, parts: Iterable[Rows]) -> Rows:
        """Return the rows of several sources, one source after another."""
        each = list(parts)
        starts = [*itertools.accumulate(map(len, each), initial=0)][:-1]
        placed = list(zip(starts, each, strict=True))
        return cls(
            texts=[text for rows in each for text in rows.texts],
            numbers=[number for rows in each for number in rows.numbers],
            files=[(start + index, name) for start, rows in placed for index, name in rows.files],
            unused=sum((rows.unused for rows in each), Counter()),
            weighted=[start + index for start, rows in placed for index in rows.weighted],
            starts=starts,
        )

    def selected(
        self, indices: Sequence[int], notes: Sequence[str] = (), sources: Mapping[str, int] | None = None
    ) -> Rows:
        """Return these of the rows, in this order, each with its place; `notes` say how they were chosen, `sources` how
        many come from which source."""
        made = Rows(notes=tuple(notes), unused=self.unused, sources=dict(sources or {}))
        weighted = {*self.weighted}
        for index in indices:
            name = self._file(index)
            if not made.files or made.files[-1][1] != name:
                made.files.append((len(made), name))
            made.weighted.extend([len(made)] * (index in weighted))
            made.texts.append(self.texts[index])
            made.numbers.append(self.numbers[index])
        return made

    def places(self, indices: Sequence[int]) -> str:
        """Return `row 3` or `rows 3, 5`: the first 20, then how many more."""
        shown = ", ".join(self.place(index) for index in indices[:MOST_SHOWN])
        more = f" and {len(indices) - MOST_SHOWN:,} more" if len(indices) > MOST_SHOWN else ""
        return f"row{'s' * (len(indices) != 1)} {shown}{more}"

    def unused_in_words(self) -> str:
        """Return which columns are left out and how many rows have each, as a sentence; empty where none is."""
        columns = ", ".join(f"{name} ({counted(count, 'row')})" for name, count in self.unused.items())
        return f"columns that say nothing here are left out: {columns}." if columns else ""


def read_rows(
    path: str | Path, key: str = "data.path", data: DataConfig | None = None, *, method: str = USUAL_METHOD
) -> list[dict[str, Any]]:
    """The rows of `read_checked_rows`, without their places."""
    return list(read_checked_rows(path, key, data, method=method))


def read_checked_rows(
    path: str | Path,
    key: str = "data.path",
    data: DataConfig | None = None,
    most: int | None = None,
    *,
    streaming: bool = False,
    method: str = USUAL_METHOD,
) -> Rows:
    """All rows that `path` names (`most`: the first), as `method` trains them; blank lines are skipped.

    Raises `ConfigError` with every bad row (the first 20, then their number): files that are missing or can't be read,
    broken UTF-8, malformed JSON, a row that is no mapping, lacks its columns, has nothing to learn or has another form
    than the first row; and where `method` doesn't train such rows. `key` is the config key that names the path; `data`
    says format and columns. A hub id is downloaded, with `streaming` only as far as its rows are read.
    """
    source = locate(path, key)
    rows, problems = Rows(), []
    for name, number, row in itertools.islice(_checked(source, key, data, METHODS[method], streaming=streaming), most):
        where = f"{name}:{number}"
        if isinstance(row, Fault):
            problems.append(Problem(key=where, consequence=row.consequence, fix=row.fix))
            continue
        if not rows.files or rows.files[-1][1] != name:
            rows.files.append((len(rows), name))
        rows.texts.append(row.text)
        rows.numbers.append(number)
        rows.unused.update(row.unused)
        rows.weighted.extend([len(rows) - 1] * row.weighted)
    if len(problems) > MOST_SHOWN:
        rest = Problem(key=str(path), consequence=f"{len(problems) - MOST_SHOWN} more lines are bad.", fix="as above")
        problems = [*problems[:MOST_SHOWN], rest]
    raise_errors(problems)
    if not rows.texts:
        fix = f"write rows into it, or name another file as {key}"
        what = "file has" if len(source.files) == 1 else "data set has"
        raise ConfigError(Problem(key=key, value=str(path), consequence=f"the {what} no rows.", fix=fix))
    return rows


def stream(path: str | Path, key: str, data: DataConfig, method: str = USUAL_METHOD) -> Iterator[str]:
    """The rows of `read_checked_rows` one by one, as text, none kept; raises `ConfigError` at the first bad one."""
    for name, number, row in _checked(locate(path, key), key, data, METHODS[method], streaming=True):
        if isinstance(row, Fault):
            raise ConfigError(Problem(key=f"{name}:{number}", consequence=row.consequence, fix=row.fix))
        yield row.text


@dataclass(frozen=True)
class _Row:
    text: str
    unused: list[str]
    weighted: bool


def _checked(
    source: Source, key: str, data: DataConfig | None, method: Method, *, streaming: bool = False
) -> Iterator[tuple[str, int, _Row | Fault]]:
    """Yield file, number and canonical row, or the `Fault` in its place; raises `ConfigError` where the first row is
    of a kind that `method` doesn't train."""
    form, columns = (data.format, data.columns) if data else ("auto", {})
    hint = "" if columns else "; columns of other names: data.columns"
    first: str | None = None
    for name, number, row in _raw(source, key, data, streaming=streaming):
        if isinstance(row, Fault):
            yield name, number, row
            continue
        if not isinstance(row, dict):
            yield name, number, Fault("is not a JSON object.", f"give every row {needed(method)}")
            continue
        try:
            made = with_template_arguments(canonical(row, form, columns, method), data)
            text = _as_text(made)
        except FormatError as error:
            yield name, number, Fault(str(error), error.fix or f"give every row {needed(method)}{hint}")
            continue
        found = form_in_words(made)
        if first is None and kind_of(made) not in method.row_kinds:
            raise ConfigError(_of_another_method(kind_of(made), method, key, name))
        first = first or found
        if found == first:
            weighted = any(map(is_left_out, made.get("messages", ())))
            yield name, number, _Row(text, unused_columns(row, made, form, columns, method), weighted)
        else:
            fix = f"give every row {needed(method)}, the same in all"
            yield name, number, Fault(f"is a row of {found}, and the first of {first}.", fix)


def _of_another_method(kind: str, method: Method, key: str, name: str) -> Problem:
    """Return the problem of rows that `method` doesn't train, with the methods that do."""
    others = " or ".join(f"method={one.name}" for one in METHODS if kind in one.row_kinds)
    consequence = f"holds rows of {kind}, which {method.name} doesn't train."
    return Problem(key=key, value=name, consequence=consequence, fix=f"{others}; or give every row {needed(method)}")


def _as_text(row: dict[str, Any]) -> str:
    """Return the row as JSON text; raises `FormatError` for what neither a chat template nor a tokenizer can read."""
    try:
        text = json.dumps(row, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        broken = ascii(error.object[error.start])
        fix = "write the whole character, or leave it out"
        raise FormatError(f"has half of a character, {broken}, which no tokenizer reads.", fix) from None
    except (TypeError, ValueError) as error:
        consequence = f"holds what JSON has no word for: {first_line(error)}."
        raise FormatError(consequence, "write it as text or as a number") from None
    return text


def _raw(source: Source, key: str, data: DataConfig | None, *, streaming: bool) -> Iterator[tuple[str, int, Any]]:
    for file in source.files:
        for number, row in rows_of_file(file, key):
            yield str(file), number, row
    if source.hub:
        from .hub import load

        tables = load(source.hub, key, data, streaming=streaming).with_format("arrow").iter(batch_size=1024)
        for number, row in enumerate((row for table in tables for row in rows_of_table(table)), start=1):
            yield source.hub, number, row


def trained_rows(count: int, rows: Rows, method: str) -> int:
    """Return how many rows `method` trains of `count` rows like `rows`."""
    return count * (2 if METHODS[method].unpairs(rows.kind) else 1)


def no_step(count: int, size: int) -> Problem:
    """Return the problem of too few rows for one global batch where incomplete batches are dropped."""
    said = f"{counted(count, 'row')} {'is' if count == 1 else 'are'}"
    consequence = f"{said} fewer than batch.global_size={size} and incomplete batches are left out: no step."
    fix = "training.dataloader_drop_last=false, a smaller batch.global_size, or more rows"
    return Problem(key="training.dataloader_drop_last", value=True, consequence=consequence, fix=fix)
