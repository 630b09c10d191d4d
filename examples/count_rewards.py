"""The rewards of examples/grpo.py and examples/configs/grpo.yaml: two functions as TRL calls them."""

import re
from typing import Any


def right(completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """Give 1 where the only number in a completion is that of the row's column `answer`, else 0."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(re.findall(r"\d+", text) == [number]) for text, number in zip(texts, answer, strict=True)]


def ends(completion_ids: list[list[int]], tokenizer: Any, **columns: Any) -> list[float]:
    """Give 1 for a completion that ends by itself, and isn't cut at the longest that is allowed, else 0."""
    return [float(ids[-1:] == [tokenizer.eos_token_id]) for ids in completion_ids]
