"""Estimate of row lengths in tokens, before anything is loaded: from the first rows, without torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.data_mix import UNTIL, weights_of
from ..errors import ConfigError
from ..methods import USUAL_METHOD
from .file_readers import rows_of_file
from .formats import sequences_of
from .rows import Rows, read_checked_rows, trained_rows
from .sources import Source, kind_of_file, locate

if TYPE_CHECKING:
    from ..config.run_config import DataConfig

ROWS = 500
CHARACTERS = 4.0
"""Characters per token of English text, used where the model's tokenizer isn't on this machine."""
COUNTED = 2**26
"""Bytes of a file up to which its lines are counted; of a larger one they are estimated from its first rows."""


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Tokens of the text in a data set's first rows, without what a chat template adds, and the rows in all."""

    mean: float
    """Mean over the rows that are trained, as they are cut."""
    rows: int
    counted: bool
    """Whether the model's tokenizer counted them; otherwise they are estimated from characters."""
    total: int | None = None
    """Rows of the whole data set that are trained; None where they can't be estimated."""
    total_known: bool = False
    """Whether `total` was counted; otherwise it is estimated."""
    ordered: tuple[float, ...] = ()
    """Length of each sequence of these rows, as they are cut, ascending."""

    def longest_of(self, count: int) -> float:
        """Return the mean length of the longest of `count` sequences drawn from these rows."""
        if not self.ordered:
            return self.mean
        known = len(self.ordered)
        # The longest of them is at most the i-th with probability (i / known) ** count.
        shares = (((i + 1) / known) ** count - (i / known) ** count for i in range(known))
        return sum(length * share for length, share in zip(self.ordered, shares, strict=True))

    def __str__(self) -> str:
        how = "counted" if self.counted else f"estimated from {CHARACTERS:g} characters per token"
        return f"about {self.mean:,.0f} tokens at the mean ({how} in {self.rows:,} rows)"


def row_lengths(data: DataConfig, model: str | Path, limit: int, method: str = USUAL_METHOD) -> RowLengths | None:
    """Lengths of up to the first `ROWS` training rows of each source, in the shares of a mix, none counted above
    `limit` tokens; with `data.too_long` as `drop` longer ones are left out. A pair has two, of its prompt with either
    answer.

    None for a hub id, which a plan doesn't download, and for rows that can't be read, which other checks report.
    """
    each = [_of_source(source, model, limit, method) for source in data.sources.values()]
    found = [one for one in each if one is not None]
    if len(found) < len(each):
        return None
    made = _mixed(found, data) if data.mix else found[0]
    total = made.total if made.total is None or data.max_rows is None else min(made.total, data.max_rows)
    return replace(made, total=total and total - round(total * (data.eval_fraction or 0)))


def _mixed(found: list[RowLengths], data: DataConfig) -> RowLengths:
    """Return the lengths of a mix of sources with these lengths."""
    counts = [one.total for one in found]
    whole = None if None in counts else [count or 0 for count in counts]
    shares = weights_of(data.mix)
    if shares:
        ends = [count / share for count, share in zip(whole or (), shares, strict=False)]
        total = round((min if data.stopping_strategy == UNTIL[0] else max)(ends)) if ends else None
    else:
        total = sum(whole) if whole else None
        shares = [count / total for count in whole] if whole and total else [1 / len(found)] * len(found)
    drawn = [round(ROWS * share) or 1 for share in shares]
    ordered = sorted(
        one.ordered[(2 * place + 1) * len(one.ordered) // (2 * number)]
        for one, number in zip(found, drawn, strict=True)
        for place in range(number if one.ordered else 0)
    )
    return RowLengths(
        mean=sum(share * one.mean for share, one in zip(shares, found, strict=True)),
        rows=sum(one.rows for one in found),
        counted=all(one.counted for one in found),
        total=total,
        total_known=all(one.total_known for one in found) and not weights_of(data.mix),
        ordered=tuple(ordered),
    )


def _of_source(data: DataConfig, model: str | Path, limit: int, method: str) -> RowLengths | None:
    """Return the lengths of one source."""
    try:
        source = locate(data.path)
        if source.hub:
            return None
        found = read_checked_rows(data.path, data=data, most=min(ROWS, data.max_rows or ROWS), method=method)
        total = len(found) if len(found) < ROWS else _total(source, found)
    except (ConfigError, OSError):
        return None
    total = total if total is None or data.max_rows is None else min(total, data.max_rows)
    texts = ["\n".join(texts_of(sequence)) for row in found for sequence in sequences_of(row)]
    counts = _counted(texts, Path(model) / "tokenizer.json")
    lengths = counts or [len(text) / CHARACTERS for text in texts]
    kept = [length for length in lengths if data.too_long != "drop" or length <= limit]
    ordered = tuple(sorted(min(length, limit) for length in kept))
    mean = sum(ordered) / max(len(ordered), 1)
    known = total is not None and (len(kept) == len(lengths)) and (len(found) < ROWS or _is_counted(source))
    total = total if total is None else round(trained_rows(total, found, method) * len(kept) / len(lengths))
    return RowLengths(
        mean=max(1.0, mean),
        rows=len(found),
        counted=counts is not None,
        total=total,
        total_known=known,
        ordered=ordered,
    )


def _is_counted(source: Source) -> bool:
    return source.kind in ("parquet", "arrow") or sum(file.stat().st_size for file in source.files) <= COUNTED


def _total(source: Source, first: Rows) -> int | None:
    """Return the number of rows of `source`, of which `first` are the first."""
    if source.kind in ("parquet", "arrow"):
        return sum(map(_rows_of_arrow, source.files))
    if _is_counted(source):
        return sum(_rows_of_text(file) for file in source.files)
    # As many rows per byte as up to the last one that was read.
    names = [str(file) for file in source.files]
    last = names.index(first.files[-1][1])
    before = sum(file.stat().st_size for file in source.files[:last])
    with source.files[last].open("rb") as file:
        read = before + sum(map(len, itertools.islice(file, first.numbers[-1])))
    return round(len(first) * sum(file.stat().st_size for file in source.files) / max(read, 1))


def _rows_of_text(path: Path) -> int:
    if kind_of_file(path) == "jsonl":
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    return sum(1 for _ in rows_of_file(path, "data.path"))


def _rows_of_arrow(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    if kind_of_file(path) == "parquet":
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    with pyarrow.memory_map(str(path)) as file:
        try:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(file))
        except pyarrow.ArrowInvalid:
            opened = pyarrow.ipc.open_file(file)
            return sum(opened.get_batch(index).num_rows for index in range(opened.num_record_batches))


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
