"""format: 1 for thoughts and an answer, each between its tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .reward import Function, Reward, texts

REWARD = Reward(
    name="format",
    about="1 for `<think>`, thoughts, `</think>`, `<answer>`, an answer and `</answer>`, on lines of their own, else 0",
    place="unsloth_accel/rewards/format.py:format_reward",
    origin="open-r1",
)
_FORM = re.compile(r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", re.DOTALL | re.MULTILINE)


def format_reward() -> Function:
    """Return a function that gives 1 for a completion that begins with `<think>`, and in which `</answer>` ends a line;
    as in open-r1, more lines may follow it.

    Reference: open-r1, src/open_r1/rewards.py: `format_reward`.
    """

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [float(bool(_FORM.match(text))) for text in texts(completions)]

    return score
