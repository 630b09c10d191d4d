"""Checks that a model has what a run names of it: modules for LoRA, and special tokens. Asks no network."""

from __future__ import annotations

from ..config.hub_cache import directory_of
from ..config.run_config import RunConfig
from ..config.start_adapter import model_of, tokenizer_of_model
from ..errors import ConfigError, Problem, close_match
from ..models.added_tokens import known_tokens
from ..models.known_names import known_config
from ..models.lora_targets import targets
from ..models.spec import ModelSpec
from ..models.tokenizer_files import read_tokens, special_token


def model_fit_problems(run: RunConfig) -> list[Problem]:
    """Return problems of modules and tokens that `run` names and its model hasn't; says nothing about a model whose
    files are not here and whose shapes the library doesn't know."""
    return [*_module_problems(run), *_token_problems(run), *_added_problems(run)]


def _module_problems(run: RunConfig) -> list[Problem]:
    name = model_of(run.model.name)
    if not (directory_of(name) or known_config(name)):
        return []
    try:
        spec = ModelSpec.load(name, trust_remote_code=run.model.trust_remote_code)
    except ConfigError:  # told elsewhere
        return []
    try:
        targets(run, spec)
    except ConfigError as error:
        return [*error.problems]
    return []


def _added_problems(run: RunConfig) -> list[Problem]:
    """Return a warning of added tokens that are there already."""
    if not (known := known_tokens(run)):
        return []
    consequence = "is a token of the model's tokenizer already" if len(known) == 1 else "are tokens of its tokenizer"
    fix = "leave it out; lora.modules_to_save: [embed_tokens, lm_head] trains the embeddings too"
    told = f"{', '.join(known)} {consequence}: nothing is added for it."
    return [Problem(key="model.added_tokens", consequence=told, fix=fix, severity="warning")]


def _token_problems(run: RunConfig) -> list[Problem]:
    """Return problems of tokens that the tokenizer hasn't: TRL and `data.tokenise` refuse them in every process."""
    asked = {key: run.training.get(key) for key in ("eos_token", "pad_token") if run.training.get(key)}
    directory = directory_of(tokenizer_of_model(run.model.name))
    if not asked or directory is None:
        return []
    tokens = read_tokens(directory)
    known = {*tokens.model, *tokens.added}
    known |= {*run.model.added_tokens} if known else set()
    problems = []
    for key, token in asked.items():
        if not known or token in known:
            continue
        near = close_match(str(token), tokens.added) or special_token(directory, key)
        fix = f"training.{key}: {near!r}, or remove it" if near else "remove it"
        consequence = "is no token of the model's tokenizer; every process fails."
        problems.append(Problem(key=f"training.{key}", value=token, consequence=consequence, fix=fix))
    return problems
