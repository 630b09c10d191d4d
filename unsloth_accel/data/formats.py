"""Formats of rows, identified by their columns, and the kinds of rows that are trained.

Alpaca and ShareGPT rows become chats, so that the model's own chat template and training on responses apply to them. A
canonical row has the columns of its format only, and is again a row of that format: it can be written and read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..config.row_formats import DECIDED, FIELDS, FOR_TEMPLATE, OPTIONAL, kind_of_format
from ..methods import METHODS, USUAL_METHOD, Method
from .chat_messages import WEIGHTS, FormatError, check_texts, checked_messages, for_chat_template, is_left_out
from .preferences import SIDES, labelled, paired
from .prompts import COMPLETION, SOLUTION, prompt_of_chat, prompt_row

if TYPE_CHECKING:
    from ..config.run_config import DataConfig

Kind = Literal["messages", "prompt-completion", "text", "preference", "unpaired-preference", "prompt"]
_COLUMNS = {
    "chat": "a `messages` list",
    "unpaired-preference": "`prompt`, `completion` and `label`, true or false",
    "preference": "`chosen` and `rejected`, beside their `prompt` or beginning with it",
    "prompt-completion": "`prompt` and `completion`",
    "prompt": "`prompt`, text or messages",
    "sharegpt": "`conversations` (ShareGPT)",
    "alpaca": "`instruction` and `output` (Alpaca)",
    "text": "`text`",
}
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "function_call"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Roles in chat templates of the speakers in ShareGPT rows."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of pictures and sound, in rows for vision-language models."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Messages up to an answer, and that answer."""

    messages: list[dict[str, Any]]
    given: dict[str, Any]
    """What `apply_chat_template` is given beside the messages."""
    answer: str


def needed(method: Method) -> str:
    """Return the columns that a row must have for `method`, in words."""
    *first, last = (words for form, words in _COLUMNS.items() if kind_of_format(form) in method.row_kinds)
    return f"{', '.join(first)}, or {last}" if first else last


def format_of(row: Mapping[str, Any], method: Method) -> str | None:
    """Return the format of a row by its columns, one that `method` trains before another; None where it has none."""
    kinds = method.row_kinds
    found = [name for name, fields in FIELDS.items() if all(field in row for field in fields)]
    if not method.generates:  # a prompt alone is a row that lacks its answer
        found = [name for name in found if kind_of_format(name) != "prompt"]
    return min(
        found,
        key=lambda name: (
            kinds.index(kind) if (kind := kind_of_format(name)) in kinds and method.generates else kind not in kinds
        ),
        default=None,
    )


def canonical(
    row: Mapping[str, Any], form: str = "auto", columns: Mapping[str, str] | None = None, method: Method | None = None
) -> dict[str, Any]:
    """The row as `method` trains it, with the columns of its kind, and what a chat template is given.

    `columns` maps our names to the row's. Raises `FormatError` where a column is missing, holds something else than it
    should, or there is nothing to learn.
    """
    method = method or METHODS[USUAL_METHOD]  # not as the parameter's default: plugins, which import this, come with it
    row = _renamed(row, columns or {})
    if seen := next((name for name in MEDIA if row.get(name)), None):
        consequence = (
            f"has `{seen}`: rows with pictures, films or sound are not trained yet, and without them the model "
        )
        consequence += "would learn to answer what it can't see."
        raise FormatError(consequence, "text rows; or remove the column, where the text says all")
    found = (format_of(row, method) if form == "auto" else form) or ""
    missing = [field for field in FIELDS.get(found, ()) if field not in row]
    if not found or missing:
        raise FormatError(_lacking(row, found, missing))
    if kind_of_format(found) == "messages":
        chat = {"alpaca": _from_alpaca, "sharegpt": _from_sharegpt}.get(found, _from_chat)(row)
        made = {"messages": chat} | _for_template(row)
        return prompt_of_chat(made, _others(row, found)) if method.generates else made
    if kind_of_format(found) == "prompt":
        made = prompt_row(_asked(row) if found == "question" else row["prompt"], _others(row, found))
        return made | (_for_template(row) if is_conversational(made) else {})
    if found == "preference":
        made = paired(row, needs_prompt=method.needs_prompt)
    elif found == "unpaired-preference":
        made = labelled(row)
    else:
        made = {field: row[field] for field in FIELDS[found]}
        check_texts(made, FIELDS[found][-1:])
    return made | (_for_template(row) if is_conversational(made) else {})


def unused_columns(
    row: Mapping[str, Any], made: Mapping[str, Any], form: str, columns: Mapping[str, str], method: Method
) -> list[str]:
    """Return the columns of `row` that say nothing of `made`, its canonical row."""
    if "columns" in made:  # rewards may read any, under this name none
        return [COMPLETION] if {COMPLETION, SOLUTION} <= _renamed(row, columns).keys() else []
    found = (format_of(_renamed(row, columns), method) if form == "auto" else form) or ""
    optional = [name for name in OPTIONAL.get(found, ()) if name not in FOR_TEMPLATE or is_conversational(made)]
    used = {columns.get(name, name) for name in (*FIELDS[found], *optional)}
    return [str(name) for name in row if name not in used]


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return the kind of a canonical row."""
    if "columns" in row:
        return "prompt"
    if "messages" in row:
        return "messages"
    if "chosen" in row:
        return "preference"
    if "label" in row:
        return "unpaired-preference"
    return "prompt-completion" if "completion" in row else "text"


def is_conversational(row: Mapping[str, Any]) -> bool:
    """Return whether a canonical row holds messages."""
    return any(isinstance(row.get(field), list) for field in ("messages", "prompt", "chosen"))


def form_in_words(row: Mapping[str, Any]) -> str:
    """Return a canonical row's form in words: rows of one form only can be trained together."""
    talks = "conversational " * (is_conversational(row) and "messages" not in row)
    alone = " without a prompt" * ("chosen" in row and "prompt" not in row)
    return talks + kind_of(row) + alone + " with a margin" * ("margin" in row)


def sequences_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a model reads of a canonical row: for a pair its prompt with either answer, otherwise the row."""
    if "columns" in row:  # rewards read them, and no model
        return [{name: value for name, value in row.items() if name != "columns"}]
    if "chosen" not in row:
        return [dict(row)]
    rest = {name: value for name, value in row.items() if name not in SIDES}
    return [rest | {"completion": row[side]} for side in SIDES]


def roles(row: Mapping[str, Any]) -> list[str]:
    """Return the roles of a canonical chat row's messages, in order."""
    return [message["role"] for message in row["messages"]]


def has_response(row: Mapping[str, Any]) -> bool:
    """Return whether a canonical chat row has an answer to learn from."""
    answers = (message for message in row["messages"] if message["role"] == "assistant")
    return any((m.get("content") or m.get("tool_calls")) and not is_left_out(m) for m in answers)


def question_of(row: Mapping[str, Any]) -> Question | None:
    """Return the last answer of a canonical chat row and what it answers; None where the row ends otherwise."""
    *before, last = row["messages"]
    if last["role"] != "assistant" or not last.get("content") or not before:
        return None
    return Question(messages=for_chat_template(before), given=template_arguments(row), answer=last["content"])


def template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `apply_chat_template` is given beside a canonical row's messages."""
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return {**tools, **row.get("chat_template_kwargs", {})}


def with_template_arguments(row: dict[str, Any], data: DataConfig | None) -> dict[str, Any]:
    """Return a canonical row with the arguments that `data` gives the chat template of every chat, beside its own."""
    if data is None or not data.chat_template_kwargs or not is_conversational(row):
        return row
    return row | {"chat_template_kwargs": {**data.chat_template_kwargs, **row.get("chat_template_kwargs", {})}}


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in row and any(ours in names for names in FIELDS.values()):
            raise FormatError(f"has no field {theirs!r}, which data.columns.{ours} names ({_fields(row)}).")
    others = {name: value for name, value in row.items() if name not in {*columns, *columns.values()}}
    return others | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def _lacking(row: Mapping[str, Any], form: str, missing: list[str]) -> str:
    if not form:
        partner = {"chosen": "rejected", "rejected": "chosen", "prompt": "completion", "completion": "prompt"}
        partner["instruction"] = "output"
        missing = next(([other] for this, other in partner.items() if this in row and other not in row), [])
    lacks = f"has no field {missing[0]!r}" if missing else "has none of the needed fields"
    return f"{lacks} ({_fields(row)})."


def _others(row: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return the columns of a row that its format has no place for, which rewards may read."""
    return {name: value for name, value in row.items() if name not in (*FIELDS[form], *OPTIONAL.get(form, ()))}


def _asked(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chat that asks what stands as text in `prompt`."""
    if not isinstance(row["prompt"], str):
        fix = "data.format=prompt, which takes messages as they are"
        raise FormatError(f"field 'prompt' is {type(row['prompt']).__name__}, not a question's text.", fix)
    return _with_system(row, [{"role": "user", "content": row["prompt"]}] if row["prompt"].strip() else [])


def _fields(row: Mapping[str, Any]) -> str:
    return f"fields: {', '.join(map(str, row)) or 'none'}"


def _from_alpaca(row: dict[str, Any]) -> list[dict[str, Any]]:
    parts = {field: row.get(field) for field in ("instruction", "input", "output", "system")}
    for field, value in parts.items():
        optional = value is None and field in ("input", "system")
        if not optional and not isinstance(value, str):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not text.")
    for field in ("instruction", "output"):
        if not str(parts[field]).strip():
            raise FormatError(f"field {field!r} is empty: there is nothing to learn from it.")
    asked = "\n\n".join(part for part in (parts["instruction"], parts["input"]) if part)
    said = [("system", parts["system"]), *_turns(row.get("history")), ("user", asked), ("assistant", parts["output"])]
    return [{"role": role, "content": text} for role, text in said if text]


def _turns(history: Any) -> list[tuple[str, str]]:
    """Earlier turns as LLaMA-Factory has them: pairs of a question and its answer, oldest first; in CSV as JSON."""
    if isinstance(history, str):
        with suppress(ValueError):
            history = json.loads(history.strip() or "[]")
    if history is None:
        return []
    pairs = history if isinstance(history, list) else [history]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(said, str) for said in p) for p in pairs):
        fix = 'give [["a question", "its answer"], …]'
        raise FormatError("field 'history' is no list of pairs of texts, a question and its answer.", fix)
    return [turn for asked, said in pairs for turn in (("user", asked), ("assistant", said))]


def _from_sharegpt(row: dict[str, Any]) -> list[dict[str, Any]]:
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
        weights = {key: turn[key] for key in WEIGHTS if key in turn}
        messages.append({"role": _ROLES[speaker.lower()], "content": said} | weights)
    return _with_system(row, checked_messages(messages, "conversations"))


def _from_chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    return _with_system(row, checked_messages(row["messages"], "messages"))


def _with_system(row: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages that begin with the row's system prompt, unless they have one already."""
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise FormatError(f"field 'system' is {type(system).__name__}, not text.", "give text")
    if not system or not messages or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _for_template(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row brings for its chat template: `tools` as a list, `chat_template_kwargs` as a mapping."""
    made: dict[str, Any] = {}
    for field, kind, name in (("tools", list, "list of objects"), ("chat_template_kwargs", dict, "mapping")):
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                fix = f"give a {name}, as JSON or as it is"
                raise FormatError(f"field {field!r} is text, and not JSON.", fix) from None
        if not value or (isinstance(value, str) and not value.strip()):
            continue  # an empty list of tools, with which some templates write of tools all the same
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not a {name}.", f"give a {name}")
        made[field] = value
    taken = [name for name in made.get("chat_template_kwargs", {}) if name in DECIDED]
    if taken:
        consequence = f"field 'chat_template_kwargs' names {taken[0]!r}, which is decided for all rows."
        raise FormatError(consequence, f"leave {taken[0]} out")
    return made
