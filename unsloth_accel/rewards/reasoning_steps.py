"""reasoning_steps: up to 1 for three signs of a step, or more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .reward import Function, Reward, texts

REWARD = Reward(
    name="reasoning_steps",
    about="1/3 for each sign of a step (`Step 1:`, a list's number or bullet, `First,`, `Next,` …), at most 1",
    place="unsloth_accel/rewards/reasoning_steps.py:reasoning_steps",
    origin="open-r1",
)
_ENOUGH = 3
_STEP = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,")


def reasoning_steps() -> Function:
    """Return a function that gives the number of signs of a step, divided by three, at most 1. As in open-r1 a list's
    number counts at the very beginning only.

    Reference: open-r1, src/open_r1/rewards.py: `reasoning_steps_reward`.
    """

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [min(1.0, len(_STEP.findall(text)) / _ENOUGH) for text in texts(completions)]

    return score
