"""The settings that a run's processes will have, as rules read them: what is given, our defaults, and the config's."""

from __future__ import annotations

import functools
import json
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...config.run_config import OWN_TRAINING_KEYS, DataConfig, RunConfig
from ...config.trainer_fields import accepts, training_fields
from ...config.trainer_settings import settings
from ...methods import METHODS, USUAL_METHOD, Method, method_or_usual
from ...strategies import STRATEGIES
from .document import Document


def resolved(tree: DictConfig | ListConfig) -> Any:
    """Return the values of `tree` with every `${…}` that leads somewhere in its place; the others are left out."""
    if isinstance(tree, ListConfig):
        keys: list[Any] = list(range(len(tree)))
    else:
        keys = list(tree)
    found: dict[Any, Any] = {}
    for key in keys:
        try:
            value = tree[key]
        except OmegaConfBaseException:
            continue
        found[key] = resolved(value) if isinstance(value, DictConfig | ListConfig) else value
    return found if isinstance(tree, DictConfig) else list(found.values())


def method_of(config: Document) -> Method:
    return method_or_usual(config.get("method", USUAL_METHOD))


def knows_method(config: Document) -> bool:
    """Return whether the method that a run names, if it names one, is known."""
    return METHODS.get(config.get("method", USUAL_METHOD)) is not None


def sources_of(config: Document) -> tuple[str, ...]:
    """Return the classes of its method's config; where nobody knows the method, those that all methods share."""
    sources = method_of(config).config_sources
    return sources if knows_method(config) else sources[:-1]


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> dict[str, Any]:
    try:
        tree = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
        return {}  # told by the reader
    return resolved(tree) if isinstance(tree, DictConfig) else {}


def values_of(config: Document) -> dict[str, Any]:
    """Return the values of a run as its reader takes them: 1e-4 is a number to OmegaConf, and text to PyYAML."""
    if not config.text:
        return config.values
    # A number that no float holds is left out, as the reader left it out.
    return _parsed(yaml.safe_dump(config.values) if "yaml-value" in config.found else config.text)


def given(config: Document) -> dict[str, Any]:
    """Return the fields of `training` that the run gives, references in their values replaced; without those of a
    wrong type, which the reader tells."""
    training = values_of(config).get("training")
    known = {**training_fields(method_of(config).config_sources), **OWN_TRAINING_KEYS}
    sound = training.items() if isinstance(training, dict) else ()
    return {key: value for key, value in sound if key in known and accepts(known[key], value)}


def settings_of(config: Document) -> dict[str, Any]:
    """Return the value of every field of the trainer's config that the run's processes will have."""
    path, share = config.get("data.eval_path"), number(config.get("data.eval_fraction"))
    data = DataConfig(path="", eval_path=path if isinstance(path, str) else None, eval_fraction=share)
    return settings(RunConfig(method=method_of(config).name, data=data, training=given(config)))


def number(value: Any) -> float | None:
    """Return `value` if it is a number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def mapping(value: Any) -> dict[str, Any] | None:
    """Return a field that is a mapping, or one as JSON text; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return {} if value is None else {str(key): one for key, one in value.items()} if isinstance(value, dict) else None


def alone(config: Document) -> bool:
    """Return whether the run is one process: it says so, or `auto` finds one GPU on the machine, if that is known."""
    strategy, asked = (
        STRATEGIES.get(config.get("distributed.strategy")),
        config.get("distributed.num_processes", "auto"),
    )
    hardware = config.context.hardware
    one_card = hardware is not None and len(hardware.devices) * hardware.num_machines == 1
    return bool((strategy and strategy.one_process) or asked == 1 or (asked == "auto" and one_card))
