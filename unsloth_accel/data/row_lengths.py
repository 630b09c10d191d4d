"""How long the rows of a file are, in tokens, before anything is loaded: from its first rows, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROWS = 500
CHARACTERS = 4.0
"""Per token, where the model's tokenizer isn't on this machine: what English text has."""


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Tokens of the text in a file's first rows, without what a chat template adds."""

    mean: float
    rows: int
    counted: bool
    """Counted by the model's tokenizer, and not estimated from characters."""

    def __str__(self) -> str:
        how = "counted" if self.counted else f"estimated from {CHARACTERS:g} characters per token"
        return f"about {self.mean:,.0f} tokens at the mean ({how} in {self.rows:,} rows)"


def row_lengths(path: str | Path, model: str | Path, limit: int) -> RowLengths | None:
    """Lengths of up to the first `ROWS` rows of a JSON Lines file, none counted above `limit` tokens.

    None where the file can't be read so; what is wrong with it is said elsewhere.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            lines = list(islice((line for line in file if line.strip()), ROWS))
        texts = ["\n".join(_texts(json.loads(line))) for line in lines]
    except (OSError, ValueError):
        return None
    if not texts:
        return None
    counts = _counted(texts, Path(model) / "tokenizer.json")
    lengths = counts or [len(text) / CHARACTERS for text in texts]
    mean = sum(min(length, limit) for length in lengths) / len(lengths)
    return RowLengths(mean=max(1.0, mean), rows=len(lengths), counted=counts is not None)


def _texts(value: Any) -> list[str]:
    """The text of a row: its strings, and of a message its content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        kept = value.get("content", value.get("value")) if "role" in value or "from" in value else list(value.values())
        return _texts(kept)
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []


def _counted(texts: list[str], tokenizer: Path) -> list[float] | None:
    if not tokenizer.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(tokenizer)).encode_batch_fast(texts)
    except Exception:  # no such package, or a file of another kind: characters will do
        return None
    return [float(len(one)) for one in encoded]
