"""The forms that rows come in, and the columns of each."""

from __future__ import annotations

FORMATS = ("auto", "chat", "prompt-completion", "text", "alpaca", "sharegpt")
FIELDS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that tell a form, in the order in which they are looked for."""
OPTIONAL = {"alpaca": ("input", "system")}
