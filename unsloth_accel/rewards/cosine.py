"""cosine: the right answer, the more the shorter; the wrong one, the less the shorter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .math_answers import MATH_VERIFY, SECONDS, is_right
from .reward import Function, Reward, texts

REWARD = Reward(
    name="cosine",
    about="a right answer's reward falls with its length in characters, a wrong one's follows its own two values, "
    "along a cosine",
    place="unsloth_accel/rewards/cosine.py:cosine",
    origin="open-r1",
    columns=("solution",),
    package=MATH_VERIFY,
)


def cosine(
    min_value_wrong: float = 0.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
    seconds: int = SECONDS,
) -> Function:
    """Return a function that gives `max_value_correct` for a right answer without a character, and `min_value_correct`
    for one of `max_len`; for a wrong one `min_value_wrong` and `max_value_wrong`; between them along a cosine. 1, where
    the solution can't be read.

    The defaults are those of open-r1's recipes, not of its function (-1 and -0.5 for wrong answers). As there the
    cosine goes on behind `max_len`, so that still longer answers are rewarded like shorter ones.

    Reference: open-r1, src/open_r1/rewards.py: `get_cosine_scaled_reward`; configs.py: `cosine_min_value_wrong`.
    """
    if not max_len > 0:
        raise ValueError(f"max_len={max_len} must be above 0")

    def score(completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[float]:
        rewards = []
        for text, right in zip(texts(completions), solution, strict=True):
            verdict = is_right(right, text, expressions=False, seconds=seconds)
            # Of a right answer the longest has the least, of a wrong one the shortest has what is called the minimum.
            long, short = (min_value_correct, max_value_correct) if verdict else (max_value_wrong, min_value_wrong)
            scaled = long + (short - long) * (1 + math.cos(math.pi * len(text) / max_len)) / 2
            rewards.append(1.0 if verdict is None else scaled)
        return rewards

    return score
