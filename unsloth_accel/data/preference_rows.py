"""Rows as those of TRL's trainers take them that tokenise them themselves: text or messages, in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..methods import Method
from .formats import is_conversational
from .prompts import NESTED

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


def columns_of(row: Mapping[str, Any]) -> Features:
    """Return the columns of canonical rows like this one. Messages are of the type of JSON, since Arrow would make the
    keys of all rows agree."""
    from datasets import Features, Json, Value

    kinds = {"label": Value("bool"), "margin": Value("float64")}
    others = row.get(NESTED, {})
    row = {name: value for name, value in row.items() if name != NESTED}
    if is_conversational(row):
        row = {**row, "tools": None, "chat_template_kwargs": {}}
    texts = {name: Value("string") if isinstance(value, str) else Json() for name, value in row.items()}
    return Features({name: kinds.get(name, texts[name]) for name in row} | dict.fromkeys(others, Json()))


def as_row(text: str, columns: Iterable[str]) -> dict[str, Any]:
    """Return a canonical row, kept as JSON text, with every one of `columns`.

    A text beside a prompt is in quotes, as JSON has it: datasets' own type takes "27" for the number otherwise
    (datasets/features/features.py: `Json.encode_example`).
    """
    row: dict[str, Any] = {name: {} if name == "chat_template_kwargs" else None for name in columns}
    given = json.loads(text)
    beside = {name: json.dumps(one) if isinstance(one, str) else one for name, one in given.pop(NESTED, {}).items()}
    row.update(beside | given)
    return {name: row[name] for name in columns}


def unpaired(dataset: Any, method: Method, seed: int) -> Dataset | IterableDataset:
    """Return the rows with two of each pair, one for either answer, where `method` takes answers with a label.

    TRL puts the good answers of a thousand pairs before the bad ones, and KTO reads rows in their order: they are
    shuffled.
    """
    from datasets import Features, Value
    from trl import unpair_preference_dataset

    if not method.unpairs("preference" if "chosen" in dataset.features else ""):
        return dataset
    given = dict(dataset.features)
    columns = {"completion": given.pop("chosen"), "label": Value("bool"), **given}
    del columns["rejected"]
    return unpair_preference_dataset(dataset, features=Features(columns)).shuffle(seed=seed)
