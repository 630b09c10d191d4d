"""repetition_penalty: less for words that come again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .reward import Function, Reward, texts

REWARD = Reward(
    name="repetition_penalty",
    about="`max_penalty` times the share of n-grams of words that were there before",
    place="unsloth_accel/rewards/repetition_penalty.py:repetition_penalty",
    origin="open-r1",
)


def repetition_penalty(ngram_size: int = 3, max_penalty: float = -1.0) -> Function:
    """Return a function that gives `max_penalty` times 1 - different n-grams / all n-grams, of lower-case words between
    white space; 0 for a completion with fewer words than `ngram_size`. open-r1 can split Chinese besides.

    Reference: open-r1, src/open_r1/rewards.py: `get_repetition_penalty_reward`, after appendix C.2 of arXiv 2502.03373.
    """
    if max_penalty > 0:
        raise ValueError(f"max_penalty={max_penalty} must not be positive")
    if ngram_size < 1:
        raise ValueError(f"ngram_size={ngram_size} must be 1 or more")

    def penalty(text: str) -> float:
        words = text.lower().split()
        ngrams = [tuple(words[start : start + ngram_size]) for start in range(len(words) - ngram_size + 1)]
        return (1 - len({*ngrams}) / len(ngrams)) * max_penalty if ngrams else 0.0

    def score(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [penalty(text) for text in texts(completions)]

    return score
