"""Formats of rows, and the columns of each."""

from __future__ import annotations

FIELDS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "unpaired-preference": ("prompt", "completion", "label"),
    "preference": ("chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "prompt": ("prompt",),
    "question": ("prompt",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Columns that identify a format, in the order in which they are looked for: those that the method trains first."""
FORMATS = ("auto", *FIELDS)
FOR_TEMPLATE = ("tools", "chat_template_kwargs")
"""Columns that a chat brings for its chat template, as TRL reads them."""
DECIDED = (
    "conversation",
    "messages",
    "tokenize",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
    "add_generation_prompt",
    "continue_final_message",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)
"""Arguments of `apply_chat_template` that say what is made of the text, and not what the text is."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "chat": ("system", *FOR_TEMPLATE),
    "preference": ("prompt", "margin", *FOR_TEMPLATE),
    "unpaired-preference": FOR_TEMPLATE,
    "prompt-completion": FOR_TEMPLATE,
    "prompt": FOR_TEMPLATE,
    "question": ("system", *FOR_TEMPLATE),
    "sharegpt": ("system", *FOR_TEMPLATE),
    "alpaca": ("input", "system", "history", *FOR_TEMPLATE),
}
"""Columns that a row of a format may have beside; `system` and `history` as LLaMA-Factory reads them, `margin` as
TRL's RewardTrainer does."""


def kind_of_format(form: str) -> str:
    """Return the kind of canonical rows (`data.formats.Kind`) that rows of this format become."""
    if form in ("chat", "sharegpt", "alpaca"):
        return "messages"
    return "prompt" if form == "question" else form
