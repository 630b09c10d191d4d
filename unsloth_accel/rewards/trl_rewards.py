"""The rewards that TRL ships, by its names: called, not written again."""

from __future__ import annotations

from .math_answers import MATH_VERIFY
from .reward import Reward

_ACCURACY, _FORMAT, _OTHER = (f"trl/rewards/{name}_rewards.py" for name in ("accuracy", "format", "other"))

ACCURACY = Reward(
    name="accuracy_reward",
    about="1 where the answer, in LaTeX or a box, equals the solution, else 0",
    place=f"{_ACCURACY}:accuracy_reward",
    origin="TRL",
    is_factory=False,
    columns=("solution",),
    messages_only=True,
    package=MATH_VERIFY,
)
REASONING_ACCURACY = Reward(
    name="reasoning_accuracy_reward",
    about="1 where the answer behind the last `</think>` equals the solution, else 0, also without that tag",
    place=f"{_ACCURACY}:reasoning_accuracy_reward",
    origin="TRL",
    is_factory=False,
    columns=("solution",),
    messages_only=True,
    package=MATH_VERIFY,
)
THINK_FORMAT = Reward(
    name="think_format_reward",
    about="1 for a beginning with `<think>`, and one `</think>` behind it, else 0; no `<answer>` is asked for",
    place=f"{_FORMAT}:think_format_reward",
    origin="TRL",
    is_factory=False,
    messages_only=True,
)
COSINE = Reward(
    name="get_cosine_scaled_reward",
    about="`cosine` over the length in tokens, of which those beyond `max_len` count no more; without a reward where "
    "the solution can't be read",
    place=f"{_ACCURACY}:get_cosine_scaled_reward",
    origin="TRL",
    columns=("solution",),
    messages_only=True,
    package=MATH_VERIFY,
)
REPETITION = Reward(
    name="get_repetition_penalty_reward",
    about="`max_penalty` times the share of n-grams of tokens that were there before",
    place=f"{_OTHER}:get_repetition_penalty_reward",
    origin="TRL",
)
SOFT_OVERLONG = Reward(
    name="get_soft_overlong_punishment",
    about="0 up to `max_completion_len` - `soft_punish_cache` tokens, from there on falling to -1",
    place=f"{_OTHER}:get_soft_overlong_punishment",
    origin="TRL",
)
