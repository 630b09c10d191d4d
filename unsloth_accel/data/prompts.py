"""Rows that a model answers itself: a prompt, and columns that a reward reads beside it, such as the right answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rewards.reward import GIVEN
from .chat_messages import FormatError, check_texts, for_chat_template

SOLUTION = "solution"
"""Column that holds what a chat's assistant said last: the name that TRL's and open-r1's rewards read."""
COMPLETION = "completion"
"""Column that TRL gives to no reward, since completions are what the model writes (trl/trainer/grpo_trainer.py:
`_calculate_rewards`); here it is `solution`, unless there is one."""
NESTED = "columns"
"""Field of a canonical row that holds its other columns, whatever their names."""


def prompt_row(prompt: Any, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt's canonical row: `prompt`, text or messages that don't end with an answer, and `columns`.

    A canonical row's own `columns` are taken as they are. Raises `FormatError` for what is no prompt, and for a column
    of a name that TRL gives a reward itself.
    """
    made = {"prompt": prompt}
    if prompt is None:
        raise FormatError("field 'prompt' is null: there is nothing to answer.", "give the question")
    check_texts(made, made)
    if isinstance(made["prompt"], list) and made["prompt"][-1]["role"] == "assistant":
        consequence = "`prompt` ends with an assistant's message, and the model writes the answer itself."
        raise FormatError(consequence, "end it before the answer; as `messages` the last answer becomes `solution`")
    if columns.keys() == {NESTED} and isinstance(columns[NESTED], Mapping):
        columns = columns[NESTED]
    taken = next((name for name in columns if name in GIVEN), None)
    if taken is not None:
        consequence = f"has a column {taken!r}, which TRL gives to rewards itself: every process would fail."
        raise FormatError(consequence, f"data.columns={{reference: {taken}}}, or leave it out")
    others = {name: value for name, value in columns.items() if name != COMPLETION}
    if COMPLETION in columns and SOLUTION not in others:
        others[SOLUTION] = _said(columns[COMPLETION])
    return made | {NESTED: others}


def _said(answer: Any) -> Any:
    """Return the text of an answer that is a chat's last messages; anything else as it is."""
    if isinstance(answer, list) and answer and isinstance(answer[-1], Mapping):
        return answer[-1].get("content") or ""
    return answer


def prompt_of_chat(row: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a canonical chat as a prompt: without its last answer, which becomes the column `solution` if none is."""
    *before, last = row["messages"]
    if last["role"] != "assistant":
        before, answer = row["messages"], {}
    else:
        answer = {SOLUTION: last.get("content") or ""}
    if not before:
        raise FormatError("a chat of an answer alone asks nothing.", "give the question before it")
    rest = {name: value for name, value in row.items() if name != "messages"}
    return prompt_row(for_chat_template(before), {**answer, **columns}) | rest
