"""A run's description as it may stand in a file: references as the user wrote them, and no secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..secret import Secret, marked, names_a_variable, plain
from .run_config import RunConfig

_VARIABLE = "UNSLOTH_ACCEL_"
"""Beginning of the name of a variable that carries a secret to the processes of a launch."""


def references(values: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the text of each `${…}` in `values`, the entries of lists by their number."""
    keys = range(len(values)) if isinstance(values, ListConfig) else list(values)
    for key in keys:
        node = values._get_node(key)
        if OmegaConf.is_interpolation(values, key):
            yield f"{prefix}{key}", str(node._value())
        elif isinstance(node, DictConfig | ListConfig) and not node._is_none() and not node._is_missing():
            yield from references(node, f"{prefix}{key}.")


def described(run: RunConfig) -> dict[str, Any]:
    """Return the values of `run` as nested keys and values."""
    values = asdict(run)
    del values["references"]
    values["rewards"]["functions"] = list(values["rewards"]["functions"])
    return values | {"training": marked(run.training)}  # also of a run that was made in Python


def as_yaml(values: dict[str, Any], run: RunConfig) -> str:
    """Return nested `values` of `run`, of which some may have been decided since, as YAML: what was written as `${…}`
    stands so again where it means the same, and a secret as the variable of `variables_of`."""
    tree, leaves, before = OmegaConf.create(plain(values)), dict(_leaves(values)), dict(_leaves(described(run)))
    secrets = {key: name for key, (name, _) in _secrets(values, run).items()}
    for key, name in secrets.items():
        _set(tree, key, f"${{oc.env:{name},null}}")
    for key, text in run.references.items():
        if key in secrets or key not in leaves or leaves[key] != before.get(key):
            continue
        _set(tree, key, text)
        if not isinstance(leaves[key], Secret) and not _means(tree, key, leaves[key]):
            _set(tree, key, leaves[key])  # what it refers to has been left out
    return str(OmegaConf.to_yaml(tree))


def variables_of(run: RunConfig) -> dict[str, str]:
    """Return the variables that carry to the processes of a launch what `as_yaml` leaves out."""
    return dict(_secrets(described(run), run).values())


def _secrets(values: Any, run: RunConfig) -> dict[str, tuple[str, str]]:
    """Return variable and text of each secret that no reference of the user's names, by its dotted key."""
    found = {}
    for key, value in _leaves(values):
        text = run.references.get(key, "")
        if isinstance(value, Secret) and not (text and names_a_variable(text)):
            found[key] = (_VARIABLE + re.sub(r"\W", "_", key).upper(), str(value))
    return found


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield f"{prefix}{key}", value
        yield from _leaves(value, f"{prefix}{key}.")


def _set(tree: Any, key: str, value: Any) -> bool:
    """Set what stands at a dotted key, whose parts may be numbers or have dots; returns whether it is there."""
    for name in range(len(tree)) if isinstance(tree, ListConfig) else list(tree):
        if key == str(name):
            tree[name] = value
            return True
        below = tree._get_node(name)
        inside = key.startswith(f"{name}.") and isinstance(below, DictConfig | ListConfig)
        if inside and _set(below, key.removeprefix(f"{name}."), value):
            return True
    return False


def _means(tree: Any, key: str, value: Any) -> bool:
    try:
        found = OmegaConf.select(tree, key)
    except OmegaConfBaseException:
        return False
    return bool((OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value)
