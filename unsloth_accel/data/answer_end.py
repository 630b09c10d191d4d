"""The end of an answer: whether a model that learns a chat template's answers will stop after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.hub_cache import directory_of
from ..config.start_adapter import model_of
from ..errors import Problem
from ..files import read_json
from ..methods import METHODS
from .formats import is_conversational, kind_of
from .rows import read_checked_rows

if TYPE_CHECKING:
    from ..config.run_config import RunConfig

_ANSWER = "Yes, it is."
_CHAT = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": _ANSWER}]
_TEMPLATE = "a template that ends answers with {{ eos_token }}, as model.chat_template=FILE.jinja"
_CONFIGS = ("generation_config.json", "config.json")


def unending_answers(run: RunConfig, tokenizer: Any) -> Problem | None:
    """Return a warning where `run` trains chats, by the template of `tokenizer`, whose answers end in no token at which
    generation stops: not in its eos_token, nor in another one of the model's generation_config."""
    # A hub's rows that are not streamed are in its cache, perhaps without a network.
    streaming, method = run.data.streaming, run.method
    key, source = next(iter(run.data.sources.items()))
    row = next(iter(read_checked_rows(source.path, key, source, 1, streaming=streaming, method=method)))
    scored = kind_of(row) == "preference" and not METHODS[method].needs_prompt  # by a model that writes no answer
    if scored or not is_conversational(row):
        return None
    try:
        text = tokenizer.apply_chat_template(_CHAT, tokenize=False)
    except Exception:  # a template may raise what it likes; how it treats the rows is told elsewhere
        return None
    _, answer, after = text.rpartition(_ANSWER)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if answer else []
    stops = {tokenizer.eos_token_id, *_generation_stops(run.model.name)}
    if not answer or stops.intersection(ids):
        return None
    added = tokenizer.added_tokens_decoder
    end = next((str(added[token]) for token in ids if token in added), None)
    ends = f"ends an answer with {end}" if end else "ends an answer with no token of its own"
    only = ", ".join(sorted(map(str, tokenizer.convert_ids_to_tokens([stop for stop in stops if stop is not None]))))
    return Problem(
        key="training.eos_token",
        value=run.training.get("eos_token"),
        consequence=f"the chat template {ends}, and generation stops at {only or 'nothing'}: the trained model would "
        "not stop after its answers.",
        fix=f"training.eos_token='{end}'" if end else _TEMPLATE,
        severity="warning",
    )


def _generation_stops(name: str) -> list[int]:
    """Return the tokens at which the model itself says that generation stops, as transformers reads it."""
    directory = directory_of(model_of(name))
    for path in [directory / file for file in _CONFIGS] if directory else []:
        if values := read_json(path):
            said: Any = values.get("eos_token_id")
            return list(said) if isinstance(said, list) else [said]
    return []
