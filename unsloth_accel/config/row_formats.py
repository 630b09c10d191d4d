"""Formats of rows, and the columns of each."""

from __future__ import annotations

FORMATS = ("auto", "chat", "prompt-completion", "text", "alpaca", "sharegpt")
FIELDS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Columns that identify a format, in the order in which they are looked for."""
OPTIONAL = {"alpaca": ("input", "system")}
