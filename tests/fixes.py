"""Applying the fixes that an error proposes, from their text, as a reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_WORD = re.compile(r"\b[a-z_]+\.[\w.]+=[^\s,()]+")
_WITHOUT = re.compile(r"\bno ([a-z_]+\.\w+)")
_GPUS = re.compile(r"(?:(\d+) machines of )?(\d+) such GPUs")


@dataclass(frozen=True)
class Fix:
    """One of the alternatives of a fix, all of whose changes belong together."""

    text: str
    words: tuple[str, ...]
    """`key=value`, to be given as overrides."""
    without: tuple[str, ...] = field(default=())
    """Keys to be left out."""
    gpus: int | None = None
    machines: int | None = None


def fixes(text: str) -> Iterator[Fix]:
    """The alternatives of a fix that say what to write; those in prose (`free the 3 GiB …`) are left out."""
    for part in re.split(r",? or |, and the like ", text):
        words, without, gpus = _WORD.findall(part), _WITHOUT.findall(part), _GPUS.search(part)
        if words or without or gpus:
            machines, count = map(int, [gpus[1] or 1, gpus[2]]) if gpus else (None, None)
            yield Fix(part, tuple(words), tuple(without), count, machines)
