"""tag_count: a quarter for each tag of `format` that is there once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .reward import Function, Reward, texts

REWARD = Reward(
    name="tag_count",
    about="1/4 for each of the four tags of `format` that is there exactly once",
    place="unsloth_accel/rewards/tag_count.py:tag_count",
    origin="open-r1",
)
_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def tag_count() -> Function:
    """Return a function that counts the tags of `format` with their line breaks.

    Reference: open-r1, src/open_r1/rewards.py: `tag_count_reward`.
    """

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [sum(text.count(tag) == 1 for tag in _TAGS) / len(_TAGS) for text in texts(completions)]

    return score
