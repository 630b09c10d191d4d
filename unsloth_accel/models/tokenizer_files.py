"""The tokens that a tokenizer can give, read from its files: needs neither transformers nor tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..files import read_json

CONFIG = "tokenizer_config.json"


class Tokens(NamedTuple):
    """The tokens of a tokenizer with their ids: those of its model, and those that were added to it."""

    model: Mapping[str, int]
    added: Mapping[str, int]


def read_tokens(directory: Path) -> Tokens:
    """Return the tokens in the files of `directory`; what is missing, or not as transformers writes it, is left out."""
    told = read_json(directory / "tokenizer.json")
    model = told.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, list):  # Unigram: each with its score, in the order of ids
        words = {entry[0]: index for index, entry in enumerate(words) if isinstance(entry, list) and entry}
    entries = told.get("added_tokens")
    added = [(one.get("content"), one.get("id")) for one in entries or () if isinstance(one, dict)]
    added += read_json(directory / "added_tokens.json").items()
    numbers = read_json(directory / CONFIG).get("added_tokens_decoder")
    for number, one in numbers.items() if isinstance(numbers, dict) else ():
        added.append((one.get("content") if isinstance(one, dict) else None, int(number) if number.isdigit() else None))
    sound = {token: number for token, number in added if isinstance(token, str) and isinstance(number, int)}
    of_model = words.items() if isinstance(words, dict) else ()
    return Tokens({token: number for token, number in of_model if token not in sound}, sound)


def special_token(directory: Path, name: str) -> str | None:
    """Return the `eos_token`, `bos_token` or `pad_token` of the tokenizer in `directory`, if it has one."""
    found = read_json(directory / CONFIG).get(name)
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else None
