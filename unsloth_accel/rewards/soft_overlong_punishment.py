"""soft_overlong_punishment: open-r1's name and defaults for what TRL computes by the same formula."""

from __future__ import annotations

from .reward import Function, Reward

REWARD = Reward(
    name="soft_overlong_punishment",
    about="0 up to `max_completion_len` - `soft_punish_cache` tokens, from there on falling to -1",
    place="unsloth_accel/rewards/soft_overlong_punishment.py:soft_overlong_punishment",
    origin="open-r1",
)


def soft_overlong_punishment(max_completion_len: int = 16384, soft_punish_cache: int = 4096) -> Function:
    """Return TRL's function: equation 13 of arXiv 2503.14476, over the length in tokens.

    Raises `ValueError` for a `soft_punish_cache` that isn't from 0 to `max_completion_len`.

    Reference: open-r1, src/open_r1/rewards.py: `get_soft_overlong_punishment`; configs.py: `soft_punish_cache`.
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(f"soft_punish_cache={soft_punish_cache} must be from 0 to max_completion_len")
    from trl.rewards import get_soft_overlong_punishment

    made: Function = get_soft_overlong_punishment(max_completion_len, soft_punish_cache)
    return made
