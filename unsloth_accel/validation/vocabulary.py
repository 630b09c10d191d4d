"""Checks that a tokenizer gives no token for which the model has no embedding, from their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

from ..config.hub_cache import directory_of
from ..config.run_config import RunConfig
from ..config.start_adapter import model_of, tokenizer_of_model
from ..data.rows import Rows
from ..errors import ConfigError, Problem
from ..files import read_json
from ..models.spec import ModelSpec
from ..models.tokenizer_files import CONFIG, read_tokens, special_token


def vocabulary_problems(run: RunConfig, rows: Mapping[str, Rows]) -> list[Problem]:
    """Return an error where `run` would look up a token behind the end of the embedding, and a warning where only other
    rows would. Says nothing about files that are not here."""
    directory = directory_of(tokenizer_of_model(run.model.name))
    if directory is None:
        return []
    tokens = read_tokens(directory)
    try:
        trusted = run.model.trust_remote_code
        known = tokens.model or tokens.added
        spec = ModelSpec.load(model_of(run.model.name), trust_remote_code=trusted) if known else None
    except ConfigError:  # told elsewhere
        spec = None
    if spec is None or not (size := _embeddings(spec)):
        return []
    count = max([*tokens.model.values(), *tokens.added.values()]) + 1
    if count <= size or run.model.added_tokens:  # with which the embedding gets a row for every token
        return []
    problem = partial(Problem, key="model.name", value=run.model.name)
    own = "the model's own tokenizer files"
    what = f"its tokenizer has {count:,} tokens and its embedding {size:,} rows"
    if any(number >= size for number in tokens.model.values()):
        return [problem(consequence=f"{what}: it is another model's, and looking its tokens up fails.", fix=own)]
    fix = (
        f"{own}; or give the embedding {count} rows (model.resize_token_embeddings of transformers), save it, and add "
    )
    fix += "embed_tokens and lm_head to lora.target_modules"
    beyond = {token: number for token, number in tokens.added.items() if number >= size}
    used = _used(re.compile("|".join(map(re.escape, beyond))), run, directory, rows)
    if used:
        told = f"{what}: {used}, token {beyond[used]}, occurs in what is trained, and looking it up fails."
        return [problem(consequence=told, fix=fix)]
    told = f"{what}: a row with one of {', '.join([*beyond][:5])} would fail; none of these has one."
    return [problem(consequence=told, fix=f"nothing, if that is all right; or {fix}", severity="warning")]


def _embeddings(spec: ModelSpec) -> int:
    """Return the number of rows of the input embeddings."""
    shapes = (tensor.shape for tensor in spec.tensors if tensor.part == "embeddings")
    return next(shapes, (spec.vocab_size,))[0]


def _used(beyond: re.Pattern[str], run: RunConfig, directory: Path, rows: Mapping[str, Rows]) -> str | None:
    """Return a token that stands in the rows, in the template that chats go through, or at the end of every text."""
    own = run.model.chat_template
    template = _text(Path(own).expanduser()) if own else _template(directory)  # of a name nothing: it is not at hand
    end = run.training.get("eos_token") or special_token(directory, "eos_token")
    chats = any(found.kind != "text" for found in rows.values())
    always = [end or "", special_token(directory, "bos_token") or "", template if chats else ""]
    texts = (text for found in rows.values() for text in found.texts)
    return next((found[0] for text in chain(always, texts) if (found := beyond.search(text))), None)


def _template(directory: Path) -> str:
    return _text(directory / "chat_template.jinja") + str(read_json(directory / CONFIG).get("chat_template") or "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
