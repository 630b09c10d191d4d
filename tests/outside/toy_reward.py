"""A reward from outside the package: how often a letter is there."""

from collections.abc import Sequence
from typing import Any

from unsloth_accel.rewards.known import REWARDS
from unsloth_accel.rewards.reward import Function, Reward, texts

REWARDS.add(
    Reward(
        name="toy_letters",
        about="1 for each time that a letter is in a completion",
        place="toy_reward.py:toy_letters",
        columns=("toy_column",),
    )
)


def toy_letters(letter: str, *, most: int = 3) -> Function:
    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [float(min(most, text.count(letter))) for text in texts(completions)]

    return score
