"""accuracy: 1 for the right mathematical answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .math_answers import MATH_VERIFY, SECONDS, is_right
from .reward import Function, Reward, texts

REWARD = Reward(
    name="accuracy",
    about="1 where the answer, in LaTeX or a box, equals the solution, else 0",
    place="unsloth_accel/rewards/accuracy.py:accuracy",
    origin="open-r1",
    columns=("solution",),
    package=MATH_VERIFY,
)


def accuracy(seconds: int = SECONDS) -> Function:
    """Return a function that gives 1 for an answer that equals the row's `solution`, and 0 for another; None, where the
    solution can't be read. Reading and comparing may take `seconds` each, and what takes more is wrong.

    Reference: open-r1, src/open_r1/rewards.py: `accuracy_reward`.
    """

    def score(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float | None]:
        found = [
            is_right(right, text, expressions=True, seconds=seconds)
            for text, right in zip(texts(completions), solution, strict=True)
        ]
        return [None if one is None else float(one) for one in found]

    return score
