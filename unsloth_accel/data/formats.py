"""Formats of rows, identified by their columns, and the three formats that are trained.

Alpaca and ShareGPT rows become chats, so that the model's own chat template and training on responses apply to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..config.row_formats import FIELDS

Kind = Literal["messages", "prompt-completion", "text"]
NEEDED = (
    "a `messages` list, `prompt` and `completion`, `conversations` (ShareGPT), `instruction` and `output` (Alpaca), "
    "or `text`"
)
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "function_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Roles in chat templates of the speakers in ShareGPT rows."""


class FormatError(Exception):
    """Error in a row, as a sentence about it."""


def format_of(row: Mapping[str, Any]) -> str | None:
    """Return the format of a row by its columns, or None."""
    return next((name for name, fields in FIELDS.items() if all(field in row for field in fields)), None)


def canonical(row: Mapping[str, Any], form: str = "auto", columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as it is trained: `messages`, `prompt` and `completion`, or `text`; other columns are dropped.

    `columns` maps our names to the row's. Raises `FormatError` where a column is missing, holds something else than it
    should, or there is nothing to learn.
    """
    row = _renamed(row, columns or {})
    found = (format_of(row) if form == "auto" else form) or ""
    missing = [field for field in FIELDS.get(found, ()) if field not in row]
    if not found or missing:
        raise FormatError(_lacking(row, found, missing))
    made = {"alpaca": _from_alpaca, "sharegpt": _from_sharegpt}.get(found, dict)(row)
    if found in ("alpaca", "sharegpt", "chat"):
        return {"messages": _messages(made["messages"], "messages")}
    made = {field: made[field] for field in FIELDS[found]}
    _check_texts(made)
    return made


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return the format of a canonical row."""
    if "messages" in row:
        return "messages"
    return "prompt-completion" if "completion" in row else "text"


def form_in_words(row: Mapping[str, Any]) -> str:
    """Return a canonical row's format in words; conversational and text prompts are different formats."""
    return f"conversational {kind_of(row)}" if isinstance(row.get("prompt"), list) else kind_of(row)


def roles(row: Mapping[str, Any]) -> list[str]:
    """Return the roles of a canonical chat row's messages, in order."""
    return [message["role"] for message in row["messages"]]


def has_response(row: Mapping[str, Any]) -> bool:
    """Return whether a canonical chat row has an answer to learn from."""
    return any(m["role"] == "assistant" and (m.get("content") or m.get("tool_calls")) for m in row["messages"])


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    renamed = dict(row)
    for ours, theirs in columns.items():
        if theirs not in row:
            raise FormatError(f"has no field {theirs!r}, which data.columns.{ours} names ({_fields(row)}).")
        renamed.pop(theirs, None)
    return renamed | {ours: row[theirs] for ours, theirs in columns.items()}


def _lacking(row: Mapping[str, Any], form: str, missing: list[str]) -> str:
    if not form:
        partner = {"prompt": "completion", "completion": "prompt", "instruction": "output"}
        missing = next(([other] for this, other in partner.items() if this in row and other not in row), [])
    lacks = f"has no field {missing[0]!r}" if missing else "has none of the needed fields"
    return f"{lacks} ({_fields(row)})."


def _fields(row: Mapping[str, Any]) -> str:
    return f"fields: {', '.join(map(str, row)) or 'none'}"


def _from_alpaca(row: dict[str, Any]) -> dict[str, Any]:
    parts = {field: row.get(field) for field in ("instruction", "input", "output", "system")}
    for field, value in parts.items():
        optional = value is None and field in ("input", "system")
        if not optional and not isinstance(value, str):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not text.")
    for field in ("instruction", "output"):
        if not str(parts[field]).strip():
            raise FormatError(f"field {field!r} is empty: there is nothing to learn from it.")
    asked = "\n\n".join(part for part in (parts["instruction"], parts["input"]) if part)
    said = {"system": parts["system"], "user": asked, "assistant": parts["output"]}
    return {"messages": [{"role": role, "content": text} for role, text in said.items() if text]}


def _from_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise FormatError("`conversations` is not a list of messages.")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise FormatError("a message is not a JSON object.")
        speaker, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(speaker, str) or not isinstance(said, str):
            part = "from" if not isinstance(speaker, str) else "value"
            raise FormatError(f"a message has no {part!r} text.")
        if speaker.lower() not in _ROLES:
            raise FormatError(f"a message is from {speaker!r}; known are {', '.join(_ROLES)}.")
        messages.append({"role": _ROLES[speaker.lower()], "content": said})
    return {"messages": messages}


def _messages(messages: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise FormatError(f"`{field}` is not a list of messages.")
    made = []
    for message in messages:
        if not isinstance(message, dict):
            raise FormatError("a message is not a JSON object.")
        # Arrow fills what a message lacks with nulls, which chat templates take for given.
        message = {key: value for key, value in message.items() if value is not None}
        calls = bool(message.get("tool_calls"))
        for part in ("role", "content"):
            if not isinstance(message.get(part), str) and not (part == "content" and calls):
                raise FormatError(f"a message has no {part!r} text.")
        made.append(message)
    if not any(message.get("content") or message.get("tool_calls") for message in made):
        raise FormatError(f"`{field}` hold no text: there is nothing to learn from them.")
    return made


def _check_texts(row: dict[str, Any]) -> None:
    if len({type(value) for value in row.values()}) > 1:
        raise FormatError("`prompt` and `completion` are not both text or both messages.")
    for field, value in row.items():
        if isinstance(value, list) and field != "text":
            row[field] = _messages(value, field)
        elif not isinstance(value, str):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not text.")
    if not row[list(row)[-1]]:
        raise FormatError(f"field {list(row)[-1]!r} is empty: there is nothing to learn from it.")
