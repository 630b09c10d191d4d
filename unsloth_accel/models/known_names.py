"""Models that are known without asking the Hub: the library's own shapes, and Unsloth's tables of its copies."""

from __future__ import annotations

import functools
import importlib.util
import json
import runpy
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..capabilities.probe import available

_QUANTIZED_SUFFIXES = ("-unsloth-bnb-4bit", "-bnb-4bit")
_BNB_4BIT = {"quant_method": "bitsandbytes", "load_in_4bit": True}
_IN_4BIT, _IN_16BIT = ("FLOAT_TO_INT_MAPPER",), ("INT_TO_FLOAT_MAPPER", "MAP_TO_UNSLOTH_16bit")


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


def copy_loaded(name: str, *, in_4bit: bool) -> str | None:
    """Return the hub id that Unsloth loads on a GPU in the place of `name`; None where it loads `name` itself."""
    tables = (_tables().get(table, {}) for table in (_IN_4BIT if in_4bit else _IN_16BIT))
    found = next((table[name.lower()] for table in tables if name.lower() in table), None)
    return None if found is None or found.lower() == name.lower() else str(found)


def known_names() -> Iterator[str]:
    """Yield hub ids of models, some of them twice, in the letters in which they are written."""
    for model in known_models().values():
        yield from model["hub_ids"]
    for table in (*_IN_4BIT, *_IN_16BIT):
        yield from map(str, _tables().get(table, {}).values())


@functools.cache
def _tables() -> Mapping[str, Any]:
    """Unsloth's tables, from a file that imports nothing: the package itself takes half a minute."""
    found = importlib.util.find_spec("unsloth")
    if found is None or not found.origin or not available("copies of models"):
        return {}
    return runpy.run_path(str(Path(found.origin).parent / "models" / "mapper.py"))
