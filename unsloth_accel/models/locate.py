"""Finding a model's config.json: in a directory, in the hub cache, among the known shapes, or on the hub."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..config.hub_cache import hub_snapshot
from ..errors import ConfigError, Problem, first_line
from ..files import is_directory, is_file, load_json
from .safetensors_header import INDEX, SINGLE

T = TypeVar("T")
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before a question, such as for config.json, is given up."""
_QUANTIZED_SUFFIXES = ("-unsloth-bnb-4bit", "-bnb-4bit")
_BNB_4BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True}


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


def known_models() -> dict[str, dict[str, Any]]:
    """The library's own shapes, by file name: hub_ids, num_parameters (as published) and config.

    `config` holds what decides shapes. A test counts each with transformers; no other value of it is checked.
    """
    files = resources.files(__package__).joinpath("known").iterdir()
    return {
        file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".json")
    }


def known_config(hub_id: str) -> dict[str, Any] | None:
    """The config of a hub id among the known shapes; `-bnb-4bit` variants have that of what was quantized."""
    wanted = unquantized(hub_id.lower())
    for model in known_models().values():
        if wanted in map(str.lower, model["hub_ids"]):
            config: dict[str, Any] = dict(model["config"])
            return config if wanted == hub_id.lower() else config | {"quantization_config": _BNB_4BIT}
    return None


def unquantized(hub_id: str) -> str:
    """The hub id of what a 4-bit copy was made from (unsloth/…-unsloth-bnb-4bit, …-bnb-4bit); others as they are."""
    return hub_id.removesuffix(next((end for end in _QUANTIZED_SUFFIXES if hub_id.endswith(end)), ""))


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
    return values


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


def _complete(snapshot: Path) -> bool:
    """Return whether all weights were downloaded; missing ones are no fault, they come when the model is loaded."""
    if (snapshot / SINGLE).is_file():
        return True
    try:
        files: Mapping[str, str] = load_json(snapshot / INDEX)["weight_map"]
        return all((snapshot / file).is_file() for file in set(files.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _downloaded(name: str, revision: str | None) -> Found:
    fix = "give a directory with a config.json, or run once online so that it is in the hub's cache"
    if hub_is_off():
        consequence = "is neither in the hub's cache nor a known shape, and the hub is switched off (HF_HUB_OFFLINE)."
        raise ConfigError(Problem(key="model.name", value=name, consequence=consequence, fix=fix))
    try:
        path = within(HUB_TIMEOUT, lambda: _download(name, revision))
    except Exception as error:  # its kinds differ by version and transport; each means that there is no config.json
        consequence = f"is not at hand, and its config.json can't be had: {type(error).__name__}: {first_line(error)}."
        raise ConfigError(Problem(key="model.name", value=name, consequence=consequence, fix=fix)) from None
    return Found(config=read_config(path), where=f"{name}/config.json", directory=path.parent)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    # Its retries are told as warnings, which would stand before the error that matters.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, etag_timeout=HUB_TIMEOUT))
    finally:
        logger.setLevel(level)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return or raise what `call` does, or raise `TimeoutError`: huggingface_hub itself retries for much longer."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=work, name="unsloth-accel-hub", daemon=True).start()
    try:
        return done.result(timeout=seconds)
    except FutureTimeout:
        raise TimeoutError(f"no answer from the hub within {seconds:g} s") from None


def hub_is_off() -> bool:
    """Return whether huggingface_hub was told to ask nobody."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def may_be_hub_id(name: str) -> bool:
    """Return whether `name` has the form of a hub id, and is no path here: of an owner that exists, it would be one."""
    owner, _, model = name.partition("/")
    if name.startswith((".", "~", "/")) or "\0" in name or "/" in model:
        return False
    return bool(owner and model) and not is_directory(Path(owner)) and not is_file(Path(owner))
