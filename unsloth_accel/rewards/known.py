"""REWARDS: every reward that a run can name, each a record in a file of its own."""

from __future__ import annotations

from ..registry import Registry
from . import (
    accuracy,
    code_format,
    cosine,
    format,
    length,
    reasoning_steps,
    repetition_penalty,
    soft_overlong_punishment,
    tag_count,
    trl_rewards,
)
from .reward import Reward

_OF_OPEN_R1 = (
    *(accuracy, format, tag_count, reasoning_steps, cosine, length),
    *(repetition_penalty, code_format, soft_overlong_punishment),
)
REWARDS: Registry[Reward] = Registry(
    "rewards.functions",
    [
        *(module.REWARD for module in _OF_OPEN_R1),
        trl_rewards.ACCURACY,
        trl_rewards.REASONING_ACCURACY,
        trl_rewards.THINK_FORMAT,
        trl_rewards.COSINE,
        trl_rewards.REPETITION,
        trl_rewards.SOFT_OVERLONG,
    ],
)
