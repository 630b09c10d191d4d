"""Rows of preferences, in the formats that TRL documents: pairs of a chosen and a rejected answer, and answers with a
label, good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from .chat_messages import FormatError, check_texts

SIDES = ("chosen", "rejected")
_TURN = "\n\nAssistant:"
"""Beginning of an answer in texts of Anthropic's HH, where two answers may begin alike."""


def paired(row: Mapping[str, Any], *, needs_prompt: bool) -> dict[str, Any]:
    """Return a pair's canonical row: `chosen` and `rejected`, and the `prompt` that both answer.

    Where there is no prompt both sides begin with it: with `needs_prompt` it is split off, as TRL does, otherwise they
    stay whole, and a `margin` stays too. Raises `FormatError` for what is no pair, or two equal answers.
    """
    made = {name: row[name] for name in ("prompt", *SIDES) if name in SIDES or row.get(name) is not None}
    for side in SIDES:
        if made[side] is None:
            raise FormatError(f"field {side!r} is null: one side of the pair is missing.", "give both answers")
    if isinstance(made.get("prompt"), str) and all(isinstance(made[side], list) for side in SIDES):
        made = _chats(made)
    check_texts(made, made)
    if made["chosen"] == made["rejected"]:
        consequence = "`chosen` and `rejected` are equal: there is nothing to prefer."
        raise FormatError(consequence, "give two different answers, or leave the row out")
    if "prompt" in made:
        made = _without_prompt(made)
    elif needs_prompt:
        made = _split(made)
    for side in SIDES:
        if isinstance(made[side], list) and made[side][-1]["role"] != "assistant":
            consequence = f"`{side}` ends with a message from {made[side][-1]['role']!r}, and an answer is compared."
            raise FormatError(consequence, "end it with the assistant's message")
    if needs_prompt or row.get("margin") is None:
        return made
    if not isinstance(row["margin"], int | float) or isinstance(row["margin"], bool):
        raise FormatError(f"field 'margin' is {type(row['margin']).__name__}, not a number.", "give a number")
    return made | {"margin": float(row["margin"])}


def labelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the canonical row of one answer, with a `label` that is true for a good one."""
    made = {name: row[name] for name in ("prompt", "completion")}
    check_texts(made, made)
    label = row["label"]
    if isinstance(label, str) and label.lower() in ("true", "false"):  # CSV has nothing but text
        label = label.lower() == "true"
    if not isinstance(label, bool):
        consequence = f"field 'label' is {label!r}, which is neither true nor false."
        raise FormatError(consequence, "true for a good answer, false for a bad one")
    return made | {"label": label}


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the number of leading items that two sequences have in common."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def _chats(made: dict[str, Any]) -> dict[str, Any]:
    """Return two chats without the prompt that stands beside them as text, as in UltraFeedback: they begin with it."""
    if any(side and isinstance(side[0], dict) and side[0].get("role") == "assistant" for side in map(made.get, SIDES)):
        raise FormatError("`prompt` is text, and `chosen` and `rejected` are messages.", "give `prompt` as messages")
    return {side: made[side] for side in SIDES}


def _without_prompt(made: dict[str, Any]) -> dict[str, Any]:
    """Return the row with answers alone, where both sides are chats that begin with the prompt's messages."""
    prompt = made["prompt"]
    if not isinstance(prompt, list) or any(made[side][: len(prompt)] != prompt for side in SIDES):
        return made
    answers = {side: made[side][len(prompt) :] for side in SIDES}
    if not all(answers.values()):
        raise FormatError(
            "one of `chosen` and `rejected` is the prompt alone: it holds no answer.", "give both answers"
        )
    return {"prompt": prompt} | answers


def _split(made: dict[str, Any]) -> dict[str, Any]:
    """Return a pair's row with the beginning that both sides share as its prompt; each keeps something."""
    chosen, rejected = made["chosen"], made["rejected"]
    count = min(shared_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if isinstance(chosen, str):
        turn = chosen.rfind(_TURN, 0, count)
        count = turn + len(_TURN) if turn >= 0 else len(chosen[:count].removesuffix(" "))
    if not count:
        consequence = "has no `prompt`, and `chosen` and `rejected` share no beginning that could be one."
        raise FormatError(consequence, "give the question as `prompt`, or at the beginning of both")
    return {"prompt": chosen[:count], "chosen": chosen[count:], "rejected": rejected[count:]}
