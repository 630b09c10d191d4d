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
FOR_TEMPLATE = ("tools", "chat_template_kwargs")
"""Columns that a chat brings for its chat template, as TRL reads them."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "chat": ("system", *FOR_TEMPLATE),
    "prompt-completion": FOR_TEMPLATE,
    "sharegpt": ("system", *FOR_TEMPLATE),
    "alpaca": ("input", "system", "history", *FOR_TEMPLATE),
}
"""Columns that a row of a format may have beside; `system` and `history` as LLaMA-Factory reads them."""
