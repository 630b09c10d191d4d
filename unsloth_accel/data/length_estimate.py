"""Estimate of row lengths in tokens, before anything is loaded: from the first rows, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .rows import read_checked_rows
from .sources import locate

if TYPE_CHECKING:
    from ..config.run_config import DataConfig

ROWS = 500
CHARACTERS = 4.0
"""Characters per token of English text, used where the model's tokenizer isn't on this machine."""


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Tokens of the text in a data set's first rows, without what a chat template adds."""

    mean: float
    rows: int
    counted: bool
    """Whether the model's tokenizer counted them; otherwise they are estimated from characters."""

    def __str__(self) -> str:
        how = "counted" if self.counted else f"estimated from {CHARACTERS:g} characters per token"
        return f"about {self.mean:,.0f} tokens at the mean ({how} in {self.rows:,} rows)"


def row_lengths(data: DataConfig, model: str | Path, limit: int) -> RowLengths | None:
    """Lengths of up to the first `ROWS` rows of `data.path`, none counted above `limit` tokens.

    None for a hub id, which a plan doesn't download, and for rows that can't be read, which other checks report.
    """
    try:
        if locate(data.path).hub:
            return None
        texts = ["\n".join(texts_of(row)) for row in read_checked_rows(data.path, data=data, most=ROWS)]
    except ConfigError:
        return None
    if not texts:
        return None
    counts = _counted(texts, Path(model) / "tokenizer.json")
    lengths = counts or [len(text) / CHARACTERS for text in texts]
    mean = sum(min(length, limit) for length in lengths) / len(lengths)
    return RowLengths(mean=max(1.0, mean), rows=len(lengths), counted=counts is not None)


def texts_of(value: Any) -> list[str]:
    """The text of a row: its strings, and of a message its content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return texts_of(value.get("content") if "role" in value else list(value.values()))
    return [text for one in value for text in texts_of(one)] if isinstance(value, list) else []


def _counted(texts: list[str], tokenizer: Path) -> list[float] | None:
    if not tokenizer.is_file():
        return None
    try:
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_file(str(tokenizer)).encode_batch_fast(texts)
    except Exception:  # no such package, or a file of another kind: characters will do
        return None
    return [float(len(one)) for one in encoded]
