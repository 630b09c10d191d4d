"""Messages of a row: checked, with text as their content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WEIGHTS = ("weight", "train")
"""Keys of a message that say whether it is trained: OpenAI's 0 or 1, and axolotl's true or false."""


class FormatError(Exception):
    """Error in a row, as a sentence about it; `fix` is empty where the row has another form than is known."""

    def __init__(self, consequence: str, fix: str = "") -> None:
        super().__init__(consequence)
        self.fix = fix


def is_left_out(message: Mapping[str, Any]) -> bool:
    """Return whether a canonical row's message says that it is not trained."""
    return message.get("weight") == 0


def for_chat_template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages without the keys that are ours."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def checked_messages(messages: Any, field: str) -> list[dict[str, Any]]:
    """Return the messages of a row's `field` with text as content, and `weight: 0` where one is not trained."""
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
            raise FormatError(
                f"a message's content has a part of {kind}; only text is trained yet.", "leave the part out"
            )
        texts.append(text)
    return "".join(texts)


def _weighted(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with `weight: 0` if it is not to be trained, and without a weight otherwise."""
    said = {key: message.pop(key) for key in WEIGHTS if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise FormatError(f"a message has {key}={value!r}; it is trained or it is not.", "1 or 0, true or false")
        if value and message["role"] != "assistant":
            consequence = f"a message from {message['role']!r} has {key}={value!r}: only the assistant's can be chosen"
            fix = "leave it out; without such keys data.train_on=all trains every message"
            raise FormatError(f"{consequence}.", fix)
    return message if all(said.values()) else message | {"weight": 0}


def check_texts(row: dict[str, Any], filled: Iterable[str]) -> None:
    """Raise `FormatError` where the fields of `row` are not all text or all messages, or one of `filled` is empty;
    messages lose in it the keys that are ours."""
    if len({type(value) for value in row.values()}) > 1:
        *first, last = (f"`{name}`" for name in row)
        together = "both" if len(first) == 1 else "all"
        raise FormatError(f"{', '.join(first)} and {last} are not {together} text or {together} messages.")
    for field, value in row.items():
        if isinstance(value, list) and field != "text":
            messages = checked_messages(value, field)
            if any(is_left_out(message) for message in messages if message["role"] == "assistant"):
                consequence = f"`{field}` has a message that is not to be trained, which only `messages` may have."
                raise FormatError(consequence, "write the row as `messages`")
            row[field] = for_chat_template(messages)
        elif not isinstance(value, str):
            raise FormatError(f"field {field!r} is {type(value).__name__}, not text.")
    for field in filled:
        if not row[field]:
            raise FormatError(f"field {field!r} is empty: there is nothing to learn from it.")
