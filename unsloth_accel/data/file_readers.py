"""Readers of row files, by the standard library where it can: planning loads nothing heavy.

Each yields rows with their numbers; a row that can't be read is a `Fault`, after which reading goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Problem, first_line
from .sources import kind_of_file


@dataclass(frozen=True)
class Fault:
    """Reason why a row can't be read."""

    consequence: str
    fix: str


def rows_of_file(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield each row of a file with its number from 1: its line in text files, its place in the others.

    Raises `ConfigError`, naming `key`, for a file that can't be read at all.
    """
    kind = kind_of_file(path)
    reader = {"json": _json, "csv": _csv, "parquet": _parquet, "arrow": _arrow}.get(kind, _json_lines)
    try:
        yield from reader(path, key)
    except OSError as error:
        fix = f"name a readable {kind} file"
        consequence = f"{error.strerror or first_line(error)}."
        raise ConfigError(Problem(key=key, value=str(path), consequence=consequence, fix=fix)) from None


def _text_lines(path: Path) -> Iterator[tuple[int, str | Fault]]:
    """Yield every line, decoded on its own, so that each broken one is known by its number."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                consequence = f"is not UTF-8 text (byte {error.start + 1} of the line)."
                yield number, Fault(consequence, "save the file as UTF-8")


def _json_lines(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    for number, line in _text_lines(path):
        if isinstance(line, Fault):
            yield number, line
        elif line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                consequence = f"malformed JSON: {error.msg} at column {error.colno}."
                yield number, Fault(consequence, "write one JSON object per line")
            except ValueError as error:  # Python reads no number of more than 4,300 digits
                yield number, Fault(f"malformed JSON: {first_line(error)}.", "write such a number as text")
            except RecursionError:
                yield number, Fault("malformed JSON: nested too deeply.", "write one JSON object per line")


def _json(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a JSON list; a file that begins otherwise holds one row a line, as `datasets` takes it."""
    with path.open("rb") as file:
        begins = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if begins != b"[":
        yield from _json_lines(path, key)
        return
    parts = []
    for number, line in _text_lines(path):
        if isinstance(line, Fault):
            yield number, line
            return
        parts.append(line)
    try:
        rows = json.loads("".join(parts))
    except json.JSONDecodeError as error:
        fix = "write a list of objects, or one object per line into a .jsonl file"
        yield error.lineno, Fault(f"malformed JSON: {error.msg} at column {error.colno}.", fix)
        return
    except ValueError as error:
        yield 1, Fault(f"malformed JSON: {first_line(error)}.", "write such a number as text")
        return
    except RecursionError:
        yield 1, Fault("malformed JSON: nested too deeply.", "write a list of objects")
        return
    yield from enumerate(rows, start=1)


def _csv(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield rows with fields named by the first line. A field of messages is JSON there: CSV has only text."""
    csv.field_size_limit(2**31 - 1)
    broken: list[tuple[int, Fault]] = []

    def lines() -> Iterator[str]:
        for number, line in _text_lines(path):
            if isinstance(line, Fault):
                broken.append((number, line))
                return
            yield line

    reader = csv.DictReader(lines(), strict=True)
    try:
        names = [*(reader.fieldnames or ())]
        if twice := next((name for name in names if names.count(name) > 1), None):
            yield 1, Fault(f"names the column {twice!r} twice.", "give each column a name of its own")
            return
        for row in reader:
            if None in row:
                fix = "quote fields that hold commas"
                yield reader.line_num, Fault("has more fields than the first line names.", fix)
            else:
                yield reader.line_num, {name: _from_csv(value) for name, value in row.items()}
    except csv.Error as error:
        yield reader.line_num, Fault(f"malformed CSV: {first_line(error)}.", "correct the quotes there")
    yield from broken


def _from_csv(value: str | None) -> Any:
    if value and value.startswith("[{"):
        with suppress(json.JSONDecodeError):
            found = json.loads(value)
            # Others are an answer that is JSON.
            if all(isinstance(one, dict) and ("role" in one or "from" in one) for one in found):
                return found
    return value


def _parquet(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _of_batches(file.iter_batches(batch_size=1024))
    except pyarrow.ArrowException as error:
        raise _unreadable(path, key, "Parquet", error) from None


def _arrow(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Read either of Arrow's two forms: the stream, which `datasets` writes, or the file."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                batches: Any = pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(file)
                batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
            yield from _of_batches(batches)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, key, "Arrow", error) from None


def _of_batches(batches: Any) -> Iterator[tuple[int, Any]]:
    yield from enumerate((row for batch in batches for row in rows_of_table(batch)), start=1)


def rows_of_table(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow table or record batch as they were before Arrow made them agree.

    A struct has every key that one of its rows has, null where a row lacks it: nulls in structs are left out, as TRL's
    `remove_none_values` leaves them out, since Arrow can't tell them from those that were given. The type of JSON,
    which `datasets` writes from 4.7 on, keeps both apart: it is read as it is.
    """
    readers = {field.name: reader for field in table.schema if (reader := _reader(field.type))}
    for row in table.to_pylist():
        for name, reader in readers.items():
            row[name] = reader(row[name])
        yield row


def _reader(kind: Any) -> Callable[[Any], Any] | None:
    """The function that makes what Arrow gives for a value of this type into the value, or None if it is that."""
    import pyarrow.types as types

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda text: text if text is None else json.loads(text)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        of_item = _reader(kind.value_type)
        return of_item and (lambda items: items if items is None else [of_item(item) for item in items])
    if types.is_struct(kind):
        parts = {field.name: _reader(field.type) or (lambda part: part) for field in kind}
        return lambda value: value and {k: parts[k](v) for k, v in value.items() if v is not None}
    return None


def _unreadable(path: Path, key: str, kind: str, error: Exception) -> ConfigError:
    consequence = f"can't be read as {kind}: {first_line(error)[:160]}."
    return ConfigError(Problem(key=key, value=str(path), consequence=consequence, fix="write the file again"))
