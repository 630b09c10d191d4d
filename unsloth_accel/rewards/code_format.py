"""code_format: 1 for thoughts and an answer with code, each between its tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .reward import Function, Reward, texts

REWARD = Reward(
    name="code_format",
    about="1 for the form of `format` with a block of code in the answer, else 0; a column `language` overrides the "
    "argument",
    place="unsloth_accel/rewards/code_format.py:code_format",
    origin="open-r1",
)


def code_format(language: str = "python") -> Function:
    """Return a function that gives 1 where the answer holds a fenced block of `language`, a regular expression, or of
    the row's own, where rows have a column `language`. Raises `ValueError` for what is no regular expression.

    Reference: open-r1, src/open_r1/rewards.py: `get_code_format_reward`.
    """
    _pattern(language)

    def score(completions: Sequence[Any], language: Sequence[str] | None = None, **columns: Any) -> list[float]:
        languages = language or [usual] * len(completions)
        pairs = zip(texts(completions), languages, strict=True)
        return [float(bool(_pattern(one or usual).match(text))) for text, one in pairs]

    usual = language
    return score


def _pattern(language: str) -> re.Pattern[str]:
    form = rf"^<think>\n.*?\n</think>\n<answer>\n.*?```{language}.*?```.*?\n</answer>$"
    try:
        return re.compile(form, re.DOTALL | re.MULTILINE)
    except re.error as error:
        raise ValueError(f"language={language!r} is no regular expression: {error}") from None
