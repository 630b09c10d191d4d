"""Tokens that a run adds to its model: the rows that the embeddings have with them, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..config.hub_cache import directory_of
from ..config.run_config import RunConfig
from ..config.start_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_adapter, tokenizer_of_model
from ..errors import Problem
from ..files import is_file, read_json
from ..methods import METHODS
from .safetensors_header import read_header
from .spec import ModelSpec
from .tokenizer_files import Tokens, read_tokens

_KEY = "model.added_tokens"
_TABLES = ("embed_tokens.weight", "lm_head.weight")


def with_added_tokens(run: RunConfig, spec: ModelSpec) -> ModelSpec:
    """Return `spec` with the rows of embeddings that `run` trains: those of the base, of the adapter that it begins
    with, or of all tokens, whichever are more (unsloth_zoo/tokenizer_utils.py: `add_new_tokens`).

    Where the tokenizer's files are not at hand each added token is taken for a row.
    """
    adapter, rows = find_adapter(run.model.name), spec.vocab_size
    if adapter:
        rows = max(rows, trained_rows(adapter.directory))
    elif run.model.added_tokens:
        tokens = _tokens(run)
        new = [token for token in run.model.added_tokens if not tokens or not _has(tokens, token)]
        rows = max(rows, len(new) + (len(tokens.model) + len(tokens.added) if tokens else rows))
    if rows == spec.vocab_size:
        return spec
    tensors = (
        replace(one, shape=(rows, *one.shape[1:]))
        if one.part in ("embeddings", "head") and one.shape[0] == spec.vocab_size
        else one
        for one in spec.tensors
    )
    return replace(spec, vocab_size=rows, tensors=tuple(tensors))


def trained_rows(directory: Path) -> int:
    """Return the rows of the embeddings that the adapter in `directory` has trained whole; 0 where it has not."""
    file = directory / ADAPTER_WEIGHTS
    if not read_json(directory / ADAPTER_CONFIG).get("modules_to_save") or not is_file(file):
        return 0
    return max((one.shape[0] for one in read_header(file) if one.name.endswith(_TABLES)), default=0)


def added_tokens_problems(run: RunConfig) -> Iterator[Problem]:
    """Yield why `run` can't train the tokens that it adds."""
    added = run.model.added_tokens
    if not added:
        return
    adapter, tokens = find_adapter(run.model.name), _tokens(run)
    if METHODS[run.method].has_score:
        consequence = f"{run.method} has a score head in place of lm_head, which would have to learn them too."
        fix = "add them in a run of method=sft, merge it, and begin with that"
        yield Problem(key=_KEY, value=added, consequence=consequence, fix=fix)
    if run.training.get("use_vllm") and METHODS[run.method].generates:
        consequence = "training.use_vllm sends weights to a server whose embeddings have no rows for them."
        yield Problem(key=_KEY, value=added, consequence=consequence, fix="training.use_vllm=false")
    lacking = [token for token in added if not tokens or not _has(tokens, token)] if adapter else []
    if adapter and lacking:
        consequence = f"the adapter {adapter.name}, which the run begins with, was trained without {lacking[0]!r}."
        yield Problem(key=_KEY, value=added, consequence=consequence, fix=adapter.merge_first)


def known_tokens(run: RunConfig) -> list[str]:
    """Return those of the run's added tokens that its model's tokenizer has already, as far as its files are here."""
    tokens = _tokens(run) if run.model.added_tokens and not find_adapter(run.model.name) else None
    return [token for token in run.model.added_tokens if tokens and _has(tokens, token)]


def _tokens(run: RunConfig) -> Tokens | None:
    directory = directory_of(tokenizer_of_model(run.model.name))
    found = read_tokens(directory) if directory else None
    return found if found and (found.model or found.added) else None


def _has(tokens: Tokens, token: str) -> bool:
    return token in tokens.model or token in tokens.added
