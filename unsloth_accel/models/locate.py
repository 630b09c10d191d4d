"""Finding a model's config.json: in a directory, in the hub cache, among the known shapes, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.hub_cache import hub_snapshot
from ..errors import ConfigError, Problem, first_line
from ..files import is_directory, is_file, load_json
from . import hub_access
from .hub_access import fetching, hub_is_off, nearest_known, refusal, within
from .known_names import known_config
from .safetensors_header import INDEX, SINGLE

_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model's config.json."""

    config: dict[str, Any]
    """Keys and values of config.json, with the string `model_type` among them."""
    where: str
    """Path of the file, for errors."""
    directory: Path | None = None
    """Directory that would hold its weights."""
    has_weights: bool = False
    """Whether `directory` is meant to hold them, so that missing ones are an error."""
    known: bool = False
    """Whether it is one of the library's own shapes."""


def find_model(name: str, revision: str | None = None) -> Found:
    """The config.json of a local directory or a hub id; raises `ConfigError` where there is none."""
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    if is_directory(path):
        return _in_directory(path)
    if not may_be_hub_id(name):
        consequence = "is a file, not a model directory." if is_file(path) else "no such directory."
        fix = "give the directory that holds config.json, or a hub id such as unsloth/Llama-3.2-1B-Instruct"
        if name.endswith("models/SmolLM2-135M-Instruct"):
            fix = "make quickstart, or python examples/prepare_smollm2.py"
        raise ConfigError(Problem(key="model.name", value=name, consequence=consequence, fix=fix))
    cached = _cached(name, revision)
    if cached:
        return cached
    config = known_config(name) if revision in (None, "main") else None
    if config:
        return Found(config=config, where=f"known shape of {name}", known=True)
    return _downloaded(name, revision)


def read_config(path: Path) -> dict[str, Any]:
    """A config.json's keys and values; raises `ConfigError` where it has none, or no model_type."""
    fix = "restore the file from the model's source"
    try:
        values = load_json(path)
    except (ValueError, OSError) as error:
        consequence = f"can't be read: {first_line(error)}."
        raise ConfigError(Problem(key=str(path), consequence=consequence, fix=fix)) from None
    if not isinstance(values, dict):
        raise ConfigError(Problem(key=str(path), consequence="is not a mapping of keys to values.", fix=fix))
    if not isinstance(values.get("model_type"), str):
        consequence = "has no model_type, so transformers can't load it."
        raise ConfigError(Problem(key=str(path), value=values.get("model_type"), consequence=consequence, fix=fix))
    found: dict[str, Any] = _with_floats(values)
    return found


def _with_floats(values: Any) -> Any:
    """Return `values` with the floats that JSON has no name for, which transformers 5 writes as
    {"__float__": "Infinity"} (configuration_utils.py: `_encode_special_floats`), as Mamba's time_step_limit."""
    if isinstance(values, dict):
        if [*values] == ["__float__"] and values["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(values["__float__"])
        return {key: _with_floats(value) for key, value in values.items()}
    return [*map(_with_floats, values)] if isinstance(values, list) else values


def _in_directory(path: Path) -> Found:
    config = path / "config.json"
    if not is_file(config):
        consequence = "has no config.json, so it is not a model directory."
        fix = "give the directory that holds config.json and the weights"
        raise ConfigError(Problem(key="model.name", value=str(path), consequence=consequence, fix=fix))
    return Found(config=read_config(config), where=str(config), directory=path, has_weights=True)


def _cached(name: str, revision: str | None) -> Found | None:
    """The model's snapshot in the hub's cache."""
    snapshot = hub_snapshot(name, revision)
    if snapshot is None or not is_file(snapshot / "config.json"):
        return None
    return Found(
        config=read_config(snapshot / "config.json"),
        where=str(snapshot / "config.json"),
        directory=snapshot,
        has_weights=_complete(snapshot),
    )


def is_cached(name: str, *, tokenizer_only: bool = False) -> bool:
    """Return whether all that loading the hub id `name` needs is in the cache: config, weights and tokenizer."""
    snapshot = hub_snapshot(name)
    if snapshot is None or not any(is_file(snapshot / file) for file in _TOKENIZERS):
        return False
    return tokenizer_only or (is_file(snapshot / "config.json") and (_complete(snapshot) or _complete(snapshot, *_BIN)))


def _complete(snapshot: Path, single: str = SINGLE, index: str = INDEX) -> bool:
    """Return whether all weights were downloaded; missing ones are no fault, they come when the model is loaded."""
    if (snapshot / single).is_file():
        return True
    try:
        files: Mapping[str, str] = load_json(snapshot / index)["weight_map"]
        return all((snapshot / file).is_file() for file in set(files.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _downloaded(name: str, revision: str | None) -> Found:
    if problem := unreachable(name, revision=revision, seconds=hub_access.HUB_TIMEOUT):
        raise ConfigError(replace(problem, severity="error"))
    try:
        path = within(hub_access.HUB_TIMEOUT, lambda: _download(name, revision))
    except Exception as error:  # its kinds differ by version and transport; each means that there is no config.json
        consequence = f"its config.json can't be had: {type(error).__name__}: {first_line(error)}."
        fix = f"try again, or hf download {name}, or give a directory"
        raise ConfigError(Problem(key="model.name", value=name, consequence=consequence, fix=fix)) from None
    return Found(config=read_config(path), where=f"{name}/config.json", directory=path.parent)


def unreachable(
    name: str, key: str = "model.name", *, revision: str | None = None, seconds: float | None = None
) -> Problem | None:
    """Return why the hub id `name`, which is not in the cache, can't be had from the Hub; None where it can."""
    if not hub_is_off():
        return refusal(name, "model", key, revision=revision, seconds=seconds)
    part = "" if hub_snapshot(name, revision) is None else "only in part "
    consequence = f"is {part or 'not '}in the hub's cache, and the hub is switched off (HF_HUB_OFFLINE)."
    near = nearest_known(name)
    fix = f"did you mean {near}? otherwise " if near else ""
    fix += f"unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE; or, once online, {fetching(name)}; or give a directory"
    return Problem(key=key, value=name, consequence=consequence, fix=fix, rule=hub_access.HUB)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json", revision=revision, etag_timeout=hub_access.HUB_TIMEOUT))


def may_be_hub_id(name: str) -> bool:
    """Return whether `name` has the form of a hub id, and is no path here: of an owner that exists, it would be one."""
    owner, _, model = name.partition("/")
    if name.startswith((".", "~", "/")) or "\0" in name or "/" in model:
        return False
    return bool(owner and model) and not is_directory(Path(owner)) and not is_file(Path(owner))
