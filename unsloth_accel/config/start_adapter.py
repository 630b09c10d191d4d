"""The adapter that a run begins with: `model.name` may name one, a directory or a hub id in the local cache.

Its base is the model that is loaded, and what `lora:` does not say is taken from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, Problem, first_line
from ..files import is_directory, is_file, load_json
from .hub_cache import hub_snapshot
from .lora_fields import OWN_START, WHOLE, as_meant, experts_modules, trained_whole
from .run_config import PROJECTIONS, LoraConfig

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ALL_WEIGHTS = (ADAPTER_WEIGHTS, "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter as PEFT saves one."""

    name: str
    """Its name in the run."""
    directory: Path
    base: str
    """Directory or hub id of its base model."""
    config: Mapping[str, Any]
    """Contents of its adapter_config.json."""

    @property
    def tokenizer(self) -> str:
        """Name of what holds its tokenizer: its own directory, or its base."""
        return str(self.directory) if is_file(self.directory / "tokenizer_config.json") else self.base

    @property
    def lora(self) -> dict[str, Any]:
        """Its values of the `lora` section's keys that its weights depend on.

        `target_modules` names those that are trained whole and the experts' too, as run.yaml does; PEFT has lists of
        their own.
        """
        said = self.config
        modules, layers = said.get("target_modules"), said.get("layers_to_transform")
        if not isinstance(modules, str):
            whole = trained_whole(said.get("modules_to_save"))
            modules = [*sorted({*(modules or ()), *experts_modules(said.get("target_parameters"))}), *sorted(whole)]
        return {
            "r": said.get("r"),
            "alpha": int(said.get("lora_alpha", 0)),
            "use_rslora": bool(said.get("use_rslora")),
            "use_dora": bool(said.get("use_dora")),
            "layers_to_transform": [layers] if isinstance(layers, int) else layers,
            "bias": said.get("bias") or "none",
            "target_modules": modules,
        }

    def trains(self, modules: Any) -> bool:
        """Return whether `modules`, a value of lora.target_modules, means what it trains."""
        own = self.lora["target_modules"]
        if isinstance(own, str) or isinstance(modules, str):
            return modules == own or (modules == "all-linear" and {*own} == {*PROJECTIONS})
        # One name of a fused parameter stands for all that are in it.
        fused = [experts_modules([one]) for one in self.config.get("target_parameters") or ()]
        modules = {*modules}.union(*(names for names in fused if names & {*modules}))
        # One of two tied modules stands for both.
        tied = dict.fromkeys(WHOLE, WHOLE[0]) if self.config.get("ensure_weight_tying") else {}
        return {tied.get(name, name) for name in modules} == {tied.get(name, name) for name in own}

    def contradictions(self, lora: LoraConfig) -> Iterator[Problem]:
        """Yield a problem for each key of `self.lora` that `lora` gives otherwise."""
        for key, own in self.lora.items():
            given = getattr(lora, key)
            same = as_meant(key, given) == as_meant(key, own)
            if self.trains(_with_whole(lora)) if key == "target_modules" else same:
                continue
            if key == "target_modules" and self.trains(given):
                key, given, own = "modules_to_save", lora.modules_to_save, self.config.get("modules_to_save") or []
            yield Problem(
                key=f"lora.{key}",
                value=given,
                consequence=f"the adapter {self.name}, which the run begins with, has {own}: its weights would mean "
                "something else.",
                fix=f"remove it, or give that; for another one {self.merge_first}",
                rule="run-value",
            )

    @property
    def merge_first(self) -> str:
        return f"unsloth-accel merge {self.directory} MERGED, and model.name=MERGED"


def _with_whole(lora: LoraConfig) -> Any:
    """Return the modules that `lora` names, those of modules_to_save too; a pattern as it is."""
    modules, whole = lora.target_modules, lora.modules_to_save
    named = PROJECTIONS if whole and modules == "all-linear" else modules
    return named if isinstance(named, str) else [*named, *(name for name in whole if name not in named)]


def find_adapter(name: str) -> Adapter | None:
    """Return the adapter that `name` means, or None where it is a model's, or nothing that is here.

    Raises `ConfigError` for an adapter that is damaged, has no base here, or can't be gone on from.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    directory = path if is_directory(path) else hub_snapshot(name)
    if directory is None or not is_file(directory / ADAPTER_CONFIG):
        return None
    if any(directory.glob("model*.safetensors")) or any(directory.glob("pytorch_model*.bin")):
        return None  # a whole model, which transformers loads with the adapter
    if not any(is_file(directory / weights) for weights in _ALL_WEIGHTS):
        fix = "give a run's finished adapter or one of its checkpoints, or download the file"
        raise _wrong(name, f"holds an adapter's config, and its weights, {ADAPTER_WEIGHTS}, are missing.", fix)
    try:
        config = load_json(directory / ADAPTER_CONFIG)
    except (OSError, ValueError) as error:
        raise _wrong(name, f"its {ADAPTER_CONFIG} can't be read: {first_line(error)}.", "copy it anew") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        fix = "write base_model_name_or_path into it, the directory or hub id of the model that it was trained on"
        raise _wrong(name, f"is an adapter, and its {ADAPTER_CONFIG} names no base model.", fix)
    adapter = Adapter(name=name, directory=directory, base=base_beside(directory, base), config=config)
    _check(adapter)
    return adapter


def base_beside(directory: Path, base: str) -> str:
    """Return the base that the adapter in `directory` names; a relative path is looked for beside the adapter too."""
    beside = (directory / base).resolve()
    return str(beside) if not Path(base).exists() and beside.is_dir() else base


def _check(adapter: Adapter) -> None:
    name, config, base = adapter.name, adapter.config, Path(adapter.base)
    kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise _wrong(name, f"is an adapter of the kind {kind}; runs train LoRA.", adapter.merge_first)
    if start not in OWN_START:
        consequence = f"is an adapter of {start} on a base that this changed, which the name of the base doesn't say."
        raise _wrong(name, consequence, adapter.merge_first)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or alpha != int(alpha):
        consequence = f"has r={rank} and lora_alpha={alpha}; a run has whole numbers."
        raise _wrong(name, consequence, adapter.merge_first)
    if is_file(base / ADAPTER_CONFIG) and not any(base.glob("model*.safetensors")):
        raise _wrong(name, f"is an adapter on another one, {base}.", f"merge that one first, then {name} into it")
    if not is_directory(base) and (base.is_absolute() or adapter.base.startswith((".", "~"))):
        fix = f"write its place into {adapter.directory / ADAPTER_CONFIG} (base_model_name_or_path)"
        raise _wrong(name, f"is an adapter, and its base model, {base}, is not there.", fix)


def _wrong(name: str, consequence: str, fix: str) -> ConfigError:
    return ConfigError(Problem(key="model.name", value=name, consequence=consequence, fix=fix, rule="run-value"))


def begin_with_adapter(schema: DictConfig, values: DictConfig, problems: list[Problem]) -> Adapter | None:
    """Take from the adapter that model.name means, if it means one, what `values` leave out; returns it."""
    name = OmegaConf.select(schema, "model.name", default=None, throw_on_missing=False)
    try:
        adapter = find_adapter(name) if name else None
    except ConfigError as error:
        problems += error.problems
        return None
    if adapter is None:
        return None
    section = OmegaConf.select(values, "lora", default=None)
    given = {*map(str, section)} if isinstance(section, DictConfig) else {*()}
    for key, value in adapter.lora.items():
        if key not in given:
            OmegaConf.update(schema, f"lora.{key}", value, merge=False)
    if "dropout" not in given:
        schema.lora.dropout = float(adapter.config.get("lora_dropout") or 0)
    tokens = OmegaConf.to_container(schema.model.added_tokens)
    for found in adapter.contradictions(OmegaConf.to_object(schema.lora)):
        if tokens and found.key == "lora.modules_to_save" and "modules_to_save" not in given:
            told = f"need embeddings that learn them; the adapter {adapter.name}, which the run begins with, has none."
            found = replace(found, key="model.added_tokens", value=tokens, consequence=told)
            found = replace(found, fix=f"remove it; or {adapter.merge_first}")
        problems.append(found)
    return adapter


def model_of(name: str) -> str:
    """Return the model that `model.name` means: the base of an adapter, or the name itself."""
    adapter = find_adapter(name)
    return adapter.base if adapter else name


def tokenizer_of_model(name: str) -> str:
    """Return the directory or hub id of the tokenizer that `model.name` means."""
    adapter = find_adapter(name)
    return adapter.tokenizer if adapter else name
