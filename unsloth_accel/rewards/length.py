"""length: of a prompt's completions the shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .math_answers import MATH_VERIFY, SECONDS, is_right
from .reward import Reward, texts

REWARD = Reward(
    name="length",
    about="0.5 for the shortest of a prompt's completions to -0.5 for the longest, in characters; for a wrong answer "
    "at most 0",
    place="unsloth_accel/rewards/length.py:length",
    origin="open-r1",
    columns=("solution",),
    package=MATH_VERIFY,
)


def length(seconds: int = SECONDS) -> Length:
    """Return the reward function; reading and comparing an answer may take `seconds` each."""
    return Length(seconds)


class Length:
    """Reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3): 0.5 - (length - shortest) / (longest - shortest) over the
    completions of one prompt, for a wrong answer at most 0; 0 for all where they are equally long.

    Answers whose solution can't be read count as right. open-r1 takes the shortest and the longest over all completions
    of a call, which is the same with one prompt in it; here a call's are put together by prompt, over all ranks
    (`over_group`).

    Reference: open-r1, src/open_r1/rewards.py: `len_reward`.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def __call__(self, completions: Sequence[Any], solution: Sequence[str], **columns: Any) -> list[tuple[int, bool]]:
        """Return the length of each completion and whether it is right, which is all that its group must know."""
        pairs = zip(texts(completions), solution, strict=True)
        return [
            (len(text), is_right(right, text, expressions=False, seconds=self._seconds) is not False)
            for text, right in pairs
        ]

    def over_group(self, found: Sequence[tuple[int, bool]]) -> list[float]:
        """Return the rewards of all completions of one prompt."""
        lengths = [length for length, _ in found]
        shortest, spread = min(lengths), max(lengths) - min(lengths)
        if not spread:
            return [0.0] * len(found)
        rewards = [0.5 - (length - shortest) / spread for length in lengths]
        return [one if right else min(0.0, one) for one, (_, right) in zip(rewards, found, strict=True)]
