"""Rows of a JSON Lines file: read and checked without torch, with line numbers for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ..problems import ConfigError, Problem, raise_errors

Kind = Literal["messages", "prompt-completion", "text"]
_FORMS = "a `messages` list, `prompt` and `completion`, or `text`"
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
MOST_SHOWN = 20


def read_rows(path: str | Path, key: str = "data.path") -> list[dict[str, Any]]:
    """All rows of `path`, each a mapping of its form's fields (others are dropped); blank lines are skipped.

    Raises `ConfigError` with every bad line (the first 20, then their number): a file that is missing, empty or not
    UTF-8, malformed JSON, a row that is no mapping, lacks its fields or has another form than the first row.
    `key` is the config key that names the file.
    """
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    first: str | None = None
    for number, line in _lines(Path(path), key):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            consequence = f"malformed JSON: {error.msg} at column {error.colno}."
            problems.append(Problem(key=where, consequence=consequence, fix="write one JSON object per line"))
            continue
        fault = "is no JSON object." if not isinstance(row, dict) else row_fault(row)
        form = None if fault else _form(row)
        if fault is None and first is not None and form != first:
            fault = f"is a {form} row and the first is {first}."
        if fault is not None:
            problems.append(Problem(key=where, consequence=fault, fix=f"give every row {_FORMS}"))
            continue
        first = first or form
        rows.append({field: row[field] for field in _FIELDS[kind_of(row) or "text"]})
    if len(problems) > MOST_SHOWN:
        rest = Problem(key=str(path), consequence=f"{len(problems) - MOST_SHOWN} more lines are bad.", fix="as above")
        problems = [*problems[:MOST_SHOWN], rest]
    raise_errors(problems)
    if not rows:
        fix = f"write rows into it, or name another file as {key}"
        raise ConfigError(Problem(key=key, value=str(path), consequence="the file has no rows.", fix=fix))
    return rows


def kind_of(row: dict[str, Any]) -> Kind | None:
    """The form of a row by its fields, or None."""
    if "messages" in row:
        return "messages"
    if "prompt" in row and "completion" in row:
        return "prompt-completion"
    return "text" if "text" in row else None


def _form(row: dict[str, Any]) -> str:
    """The form of a good row in words; a conversational prompt is another form than a text one."""
    conversational = isinstance(row.get("prompt"), list) and kind_of(row) == "prompt-completion"
    return f"conversational {kind_of(row)}" if conversational else str(kind_of(row))


def row_fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, or None."""
    kind = kind_of(row)
    if kind is None:
        missing = next(
            (other for this, other in (("prompt", "completion"), ("completion", "prompt")) if this in row), ""
        )
        lacks = f"has no field {missing!r}" if missing else "has none of the needed fields"
        return f"{lacks} (fields: {', '.join(map(str, row)) or 'none'})."
    if kind == "messages":
        return _messages_fault(row["messages"])
    fields = _FIELDS[kind]
    if len({type(row[field]) for field in fields}) > 1:
        return "`prompt` and `completion` are not both text or both messages."
    for field in fields:
        if isinstance(row[field], list) and field != "text":
            fault = _messages_fault(row[field], field)
            if fault:
                return fault
        elif not isinstance(row[field], str):
            return f"field {field!r} is {type(row[field]).__name__}, not text."
    if not row[fields[-1]]:
        return f"field {fields[-1]!r} is empty: there is nothing to learn from it."
    return None


def _messages_fault(messages: Any, field: str = "messages") -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"`{field}` is no list of messages."
    for message in messages:
        if not isinstance(message, dict):
            return "a message is no JSON object."
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                return f"a message has no {part!r} text."
    return None


def _lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that hold something; raises `ConfigError` for a file that can't be read."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
        return
    except FileNotFoundError:
        wrong = ("no such file.", "check the path")
    except OSError as error:
        wrong = (f"{error.strerror}.", "name a readable JSON Lines file")
    except UnicodeDecodeError:
        wrong = (f"is not UTF-8 text (after line {number}).", "save the file as UTF-8")
    raise ConfigError(Problem(key=key, value=str(path), consequence=wrong[0], fix=wrong[1]))
