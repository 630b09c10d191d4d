"""Shapes of any model that the installed transformers can build, found out once and kept in the user's cache.

A process of its own builds the model without weights (`models.build_without_weights`), which takes some seconds, most
of them for importing torch. It sees no GPU and asks no network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..config.installed_source import source_text
from ..errors import ConfigError, Problem, shortened
from ..files import read_json, write_atomically
from . import build_without_weights

_PROGRAM = Path(build_without_weights.__file__)
KNOWN = "transformers/models/auto/modeling_auto.py"
"""File that names every model_type of which transformers can build a model."""
_SECONDS = 600.0
"""Patience with the process, which takes five seconds; a busy machine takes a minute."""
_NEEDED = ("torch", "transformers")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Names that nearly all classes have for the sizes without which there is no shape."""
_PACKAGES = re.compile(r"requires the (\S+) library|not found in your environment: ([^.\s]+)|No module named '([^'.]+)")
"""How transformers names a package that a model needs (utils/import_utils.py, dynamic_module_utils.py), and Python."""


Part = Literal["embeddings", "head", "linear", "experts", "tower", "other"]
"""Place of a parameter in the model: input embeddings, output head, the nn.Linear of a decoder block that LoRA can
reach, the fused experts of a mixture, another model for images or sound with what joins it, or none of these."""


class Shape(NamedTuple):
    """One parameter of a built model."""

    name: str
    shape: tuple[int, ...]
    part: Part


class UnknownModel(ConfigError):
    """A model_type that the installed transformers doesn't know."""


class NotTrained(ConfigError):
    """A model that transformers knows and that no run could train here, whatever its weights."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A model as transformers builds it; the fields are explained in `build_without_weights.describe`."""

    model_class: str
    block_class: str
    blocks: str
    num_layers: int
    tied: bool
    reached: bool
    tensors: tuple[Shape, ...]
    values: Mapping[str, int]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Counted:
        """Return what `build_without_weights.describe` told."""
        shapes = (Shape(name, tuple(shape), part) for name, shape, part in told["tensors"])
        return cls(**{**told, "tensors": tuple(shapes)})


def count(config: Mapping[str, Any], where: str, directory: Path | None, *, trust_remote_code: bool = False) -> Counted:
    """Return the shapes of the model that `config`, a config.json's keys and values, describes.

    With `trust_remote_code` a model whose config.json names its own code (auto_map) is built by it, from `directory`.
    Raises `ConfigError`, keyed by `where`: a model_type that transformers doesn't know, or that predicts no tokens;
    values that contradict each other; a package that is missing.
    """
    values = {key: value for key, value in config.items() if key != "quantization_config"}
    trusted = str(directory) if trust_remote_code and directory and "auto_map" in config else None
    kept = None if trusted else _cache_file(values)
    told = read_json(kept) if kept else {}
    if "tensors" not in told:
        known = source_text(KNOWN)
        if known and not trusted and f'"{config["model_type"]}"' not in known:
            raise _refusal("KeyError", "", config, where)
        told = _ask({"values": values, "directory": trusted}, config, where)
        if kept:
            with suppress(OSError):  # a home that can't be written to costs the seconds again
                write_atomically(kept, json.dumps(told))
    return Counted.of(told)


def of_named_class(config: Mapping[str, Any]) -> str | None:
    """Return the model_type of which transformers builds the class that `config` names as its architecture; None where
    there is none, or `config` has other names for its sizes, for which that class would take its own."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or not name.endswith("ForCausalLM"):
        return None
    if any(type(config.get(key)) is not int for key in _SIZES):
        return None
    found = re.search(rf'\("(\w+)", "{re.escape(name)}"\)', source_text(KNOWN))
    return found[1] if found else None


def _cache_file(values: Mapping[str, Any]) -> Path | None:
    """Return the file that keeps what was told of `values`, by the installed transformers and this program."""
    try:
        made_by = f"{version('transformers')} {_PROGRAM.read_text(encoding='utf-8')}"
        key = hashlib.sha256((json.dumps(values, sort_keys=True) + made_by).encode()).hexdigest()[:32]
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except (PackageNotFoundError, OSError, RuntimeError):
        return None
    return home / "unsloth-accel" / "models" / f"{key}.json"


def _ask(given: Mapping[str, Any], config: Mapping[str, Any], where: str) -> dict[str, Any]:
    missing = [name for name in _NEEDED if not _installed(name)]
    if missing:
        consequence = f"has no shapes that are known without {' and '.join(missing)}, which is not installed here."
        raise _problem(config, where, consequence, f"pip install {' '.join(missing)}")
    try:
        told: dict[str, Any] = json.loads(_built(json.dumps(given)))
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        written = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        why = _last(written or str(error))
        raise _problem(config, where, f"can't be built to be counted: {why}.", "give a model that is known") from None
    if "error" in told:
        raise _refusal(told["error"], told["text"], config, where)
    return told


@functools.lru_cache(maxsize=8)  # a command asks several times
def _built(given: str) -> bytes:
    """Return the answer of the process that builds a model."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    ended = subprocess.run(
        [sys.executable, "-m", build_without_weights.__name__],
        input=given.encode(),
        capture_output=True,
        timeout=_SECONDS,
        env={**os.environ, **offline, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    return ended.stdout


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _refusal(kind: str, text: str, config: Mapping[str, Any], where: str) -> ConfigError:
    """Return what the process could not do, as a problem of the model."""
    package = _PACKAGES.search(text)
    if package:
        name = next(filter(None, package.groups()))
        needs = f"needs the package {name}, which is not installed here."
        return NotTrained(_problem(config, where, needs, f"pip install {name}").problems)
    if kind == "KeyError" and "auto_map" in config:
        consequence = f"is no model of the installed transformers {version('transformers')}; it brings its own code."
        fix = "model.trust_remote_code=true, where you trust that code: it runs on this machine, and in every process"
        return UnknownModel(_problem(config, where, consequence, fix).problems)
    if kind == "KeyError":
        consequence = f"is no model that the installed transformers {version('transformers')} knows."
        fix = "pip install -U transformers, if it is newer than that; otherwise another model"
        return UnknownModel(_problem(config, where, consequence, fix).problems)
    if kind == "NoLanguageModel":
        consequence = f"predicts no next token: transformers builds no causal language model of a {text}."
        return NotTrained(_problem(config, where, consequence, "another model").problems)
    if kind == "SeesLaterTokens":
        consequence = f"sees later tokens of a row, too: a {text} trained on text alone would learn to look them up."
        return NotTrained(_problem(config, where, consequence, "another model").problems)
    if kind == "OSError":  # of its own code, which only a model that is trusted has
        return _problem(config, where, f"its own code is not here: {_last(text)}.", "hf download it, with its *.py")
    consequence = f"can't be built by transformers: {kind}: {_last(text)}."
    return _problem(config, where, consequence, "restore config.json from the model's source; or give another model")


def _last(text: str) -> str:
    """Return the last line of an error, which may print a whole module before it."""
    return shortened((text.strip().splitlines() or [""])[-1].rstrip("."), 200)


def _problem(config: Mapping[str, Any], where: str, consequence: str, fix: str) -> ConfigError:
    key = f"{where}: model_type"
    return ConfigError(Problem(key=key, value=config["model_type"], consequence=consequence, fix=fix))
