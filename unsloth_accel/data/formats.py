"""Formats of rows, identified by their columns, and the three formats that are trained.

Alpaca and ShareGPT rows become chats, so that the model's own chat template and training on responses apply to them. A
canonical row has the columns of its format only, and is again a row of that format: it can be written and read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ..config.row_formats import FIELDS, OPTIONAL

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
_WEIGHTS = ("weight", "train")
"""Keys of a message that say whether it is trained: OpenAI's 0 or 1, and axolotl's true or false."""
_OURS = (
    "conversation",
    "messages",
    "tokenize",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)
"""Arguments of `apply_chat_template` that say what is made of the text, and not what the text is."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Messages up to an answer, and that answer."""

    messages: list[dict[str, Any]]
    given: dict[str, Any]
    """What `apply_chat_template` is given beside the messages."""
    answer: str


class FormatError(Exception):
    """Error in a row, as a sentence about it; `fix` is empty where the row has another form than is known."""

    def __init__(self, consequence: str, fix: str = "") -> None:
        super().__init__(consequence)
        self.fix = fix


def format_of(row: Mapping[str, Any]) -> str | None:
    """Return the format of a row by its columns, or None."""
    return next((name for name, fields in FIELDS.items() if all(field in row for field in fields)), None)


def canonical(row: Mapping[str, Any], form: str = "auto", columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row as it is trained: `messages`, `prompt` and `completion`, or `text`, and what a chat template is given.

    `columns` maps our names to the row's. Raises `FormatError` where a column is missing, holds something else than it
    should, or there is nothing to learn.
    """
    row = _renamed(row, columns or {})
    found = (format_of(row) if form == "auto" else form) or ""
    missing = [field for field in FIELDS.get(found, ()) if field not in row]
    if not found or missing:
        raise FormatError(_lacking(row, found, missing))
    if found in ("alpaca", "sharegpt", "chat"):
        chat = {"alpaca": _from_alpaca, "sharegpt": _from_sharegpt}.get(found, _from_chat)(row)
        return {"messages": chat} | _for_template(row)
    made = {field: row[field] for field in FIELDS[found]}
    _check_texts(made)
    return made | (_for_template(row) if isinstance(made.get("prompt"), list) else {})


def unused_columns(row: Mapping[str, Any], made: Mapping[str, Any], form: str, columns: Mapping[str, str]) -> list[str]:
    """Return the columns of `row` that say nothing of `made`, its canonical row."""
    found = (format_of(_renamed(row, columns)) if form == "auto" else form) or ""
    optional = OPTIONAL.get(found, ()) if kind_of(made) == "messages" or isinstance(made.get("prompt"), list) else ()
    used = {columns.get(name, name) for name in (*FIELDS[found], *optional)}
    return [str(name) for name in row if name not in used]


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


def is_left_out(message: Mapping[str, Any]) -> bool:
    """Return whether a canonical row's message says that it is not trained."""
    return message.get("weight") == 0


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


def for_chat_template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages without the keys that are ours."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in row and not any(ours in names for names in OPTIONAL.values()):
            raise FormatError(f"has no field {theirs!r}, which data.columns.{ours} names ({_fields(row)}).")
    others = {name: value for name, value in row.items() if name not in {*columns, *columns.values()}}
    return others | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def _lacking(row: Mapping[str, Any], form: str, missing: list[str]) -> str:
    if not form:
        partner = {"prompt": "completion", "completion": "prompt", "instruction": "output"}
        missing = next(([other] for this, other in partner.items() if this in row and other not in row), [])
    lacks = f"has no field {missing[0]!r}" if missing else "has none of the needed fields"
    return f"{lacks} ({_fields(row)})."


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
        weights = {key: turn[key] for key in _WEIGHTS if key in turn}
        messages.append({"role": _ROLES[speaker.lower()], "content": said} | weights)
    return _with_system(row, _messages(messages, "conversations"))


def _from_chat(row: dict[str, Any]) -> list[dict[str, Any]]:
    return _with_system(row, _messages(row["messages"], "messages"))


def _with_system(row: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages that begin with the row's system prompt, unless they have one already."""
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise FormatError(f"field 'system' is {type(system).__name__}, not text.", "give text")
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _messages(messages: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise FormatError(f"`{field}` is not a list of messages.")
    made = []
    for message in messages:
        if not isinstance(message, dict):
            raise FormatError("a message is not a JSON object.")
        # Chat templates take a key that is null for given; Arrow, and OpenAI's own format, write them.
        message = {key: value for key, value in message.items() if value is not None}
        if "content" in message:
            message["content"] = _text_of(message["content"])
        calls = bool(message.get("tool_calls"))
        for part in ("role", "content"):
            if not isinstance(message.get(part), str) and not (part == "content" and calls):
                raise FormatError(f"a message has no {part!r} text.")
        made.append(_weighted(message))
    if not any(message.get("content") or message.get("tool_calls") for message in made):
        raise FormatError(f"`{field}` hold no text: there is nothing to learn from them.")
    return made


def _text_of(content: Any) -> Any:
    """Return the text of a content that is a list of text parts; the content itself where it is none."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "no text") if isinstance(part, dict) else type(part).__name__
            raise FormatError(f"a message's content has a part of {kind}; only text is trained.", "leave the part out")
        texts.append(text)
    return "".join(texts)


def _weighted(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with `weight: 0` if it is not to be trained, and without a weight otherwise."""
    said = {key: message.pop(key) for key in _WEIGHTS if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise FormatError(f"a message has {key}={value!r}; it is trained or it is not.", "1 or 0, true or false")
        if value and message["role"] != "assistant":
            consequence = f"a message from {message['role']!r} has {key}={value!r}: only the assistant's can be chosen"
            fix = "leave it out; without such keys data.train_on=all trains every message"
            raise FormatError(f"{consequence}.", fix)
    return message if all(said.values()) else message | {"weight": 0}


def _for_template(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row brings for its chat template: `tools` as a list, `chat_template_kwargs` as a mapping."""
    made: dict[str, Any] = {}
    for field, kind, name in (("tools", list, "list of objects"), ("chat_template_kwargs", dict, "mapping")):
        value = row.get(field)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                fix = f"give a {name}, as JSON or as it is"
                raise FormatError(f"field {field!r} is text, and not JSON.", fix) from None
        if not value or (isinstance(value, str) and not value.strip()):
            continue  # an empty list of tools, with which some templates write of tools all the same
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, dict) for one in value)):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not a {name}.", f"give a {name}")
        made[field] = value
    taken = [name for name in made.get("chat_template_kwargs", {}) if name in _OURS]
    if taken:
        consequence = f"field 'chat_template_kwargs' names {taken[0]!r}, which is decided for all rows."
        raise FormatError(consequence, f"leave {taken[0]} out")
    return made


def _check_texts(row: dict[str, Any]) -> None:
    if len({type(value) for value in row.values()}) > 1:
        raise FormatError("`prompt` and `completion` are not both text or both messages.")
    for field, value in row.items():
        if isinstance(value, list) and field != "text":
            messages = _messages(value, field)
            if any(is_left_out(message) for message in messages if message["role"] == "assistant"):
                consequence = f"`{field}` has a message that is not to be trained, which only `messages` may have."
                raise FormatError(consequence, "write the row as `messages`")
            row[field] = for_chat_template(messages)
        elif not isinstance(value, str):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not text.")
    if not row[list(row)[-1]]:
        raise FormatError(f"field {list(row)[-1]!r} is empty: there is nothing to learn from it.")
