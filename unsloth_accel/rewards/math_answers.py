"""Comparing a mathematical answer with its solution, by math-verify, as open-r1's rewards do."""

from __future__ import annotations

import logging
import threading
from typing import Any

MATH_VERIFY = "math-verify"
"""Name of the package to pip."""
SECONDS = 5
"""Time limit of reading an answer, and of comparing it, in seconds: math-verify's own default."""


def is_right(solution: str, text: str, *, expressions: bool, seconds: int | None = SECONDS) -> bool | None:
    """Return whether the answer in `text` equals `solution`; None where nothing mathematical is in `solution`.

    The answer must be LaTeX between its signs or in a box, of which the box comes first; what can't be read, or takes
    more than `seconds`, is wrong. With `expressions` a solution may be a plain number or expression, and is compared
    as the first of the two; without, it must be LaTeX, and comes second. That differs where one is an interval and the
    other an inequality: math-verify then takes only one order of the two for equal.

    Reference: open-r1, src/open_r1/rewards.py: `accuracy_reward` has the first, `len_reward` and
    `get_cosine_scaled_reward` the second.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    if threading.current_thread() is not threading.main_thread():  # its limit is a signal's
        seconds = None
        for name in ("parser", "grader"):  # which would say so with each answer
            logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
    first_match: dict[str, Any] = {"extraction_mode": "first_match", "parsing_timeout": seconds}
    known = {} if expressions else {"extraction_config": [LatexExtractionConfig()]}
    gold = parse(solution, **known, **first_match)
    if not gold:
        return None
    answer = parse(text, extraction_config=[_written_as_latex()], **first_match)
    pair = (gold, answer) if expressions else (answer, gold)
    return bool(verify(*pair, timeout_seconds=seconds))


def _written_as_latex() -> Any:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    normal = NormalizationConfig(basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all")
    return LatexExtractionConfig(normalization_config=normal, boxed_match_priority=0, try_extract_without_anchor=False)
