"""ConfigManager: arguments of enable_multi_gpu, decided by the planner, kept in YAML files, compared and checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..config.read_run import from_dict
from ..errors import ConfigError, Problem, errors, raise_errors, yaml_fault
from ..files import write_atomically
from ..hardware.device import Device
from ..hardware.hardware import Hardware
from ..models.known_names import known_models
from .asked import MultiGPUConfig, unknown, value_problems
from .patched import say

TEMPLATES: dict[str, dict[str, Any]] = {
    "default": {},
    "high_performance": {"batch_size_per_gpu": 8, "enable_gradient_checkpointing": False},
    "memory_efficient": {
        "batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "enable_gradient_checkpointing": True,
    },
    "debug": {"batch_size_per_gpu": 1, "debug": True},
}
"""Arguments that differ from the defaults of `MultiGPUConfig`. `high_performance` has 8 rows at once and recomputes no
activations, `memory_efficient` the same rows per step one by one, recomputing them; in `debug` DDP names the
parameters without a gradient."""
FAR = 0.25
"""Share by which a known model's parameters may differ from those asked for, without a word."""
MOST_GPUS = 1024
"""GPUs of one machine that are planned for at most."""
ARGUMENTS = {
    "model.name": "model_size",
    "model.max_seq_length": "max_seq_length",
    "model.load_in_4bit": "load_in_4bit",
    "batch.global_size": "target_batch_size",
    "distributed.num_processes": "num_gpus",
}
"""Arguments of `get_optimal_config`, by the keys of the run that it has planned."""
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([bm])(?:illion)?\s*", re.IGNORECASE)
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(gi?b?|mi?b)?\s*", re.IGNORECASE)


class ConfigManager:
    """Makes, keeps and compares arguments of `enable_multi_gpu`, as YAML files in `config_dir`."""

    def __init__(self, config_dir: str | Path = "configs") -> None:
        self.config_dir = Path(config_dir)

    def get_optimal_config(
        self,
        model_size: str | float | None = None,
        available_memory: str | float | None = None,
        *,
        num_gpus: int | None = None,
        target_batch_size: int | None = None,
        max_seq_length: int = 2048,
        load_in_4bit: bool = False,
    ) -> dict[str, Any]:
        """Return the arguments of `enable_multi_gpu` with which a LoRA training of such a model is planned.

        `model_size`: parameters, as "7B" or a number of them; or a model's hub id or directory. Of a size, the known
        model that is nearest to it is planned for. `available_memory`: of each GPU, as "32GB" or in GiB; by default
        what this machine's GPUs have. `num_gpus`: by default those that are seen here, 1 without any.
        `target_batch_size`: rows per optimizer step over all GPUs, kept exactly; 8 per GPU by default.
        Without `model_size` the smallest known model stands for it. The plan estimates memory as `unsloth-accel plan`
        does. Raises `ConfigError` where the model doesn't fit, with what would, by the names of these arguments.
        """
        from ..models.spec import ModelSpec, from_config
        from ..planning.planner import plan

        raise_errors(value_problems({"num_gpus": num_gpus}))
        seen = Hardware.detect()
        count = num_gpus or max(len(seen.devices), 1)
        if count > MOST_GPUS:
            consequence, fix = "is more than a machine has.", f"num_gpus={max(len(seen.devices), 1)}"
            raise ConfigError(Problem(key="num_gpus", value=count, consequence=consequence, fix=fix))
        hardware = _hardware(seen, count, available_memory)
        wanted = _parameters(model_size)
        try:
            if wanted is None:
                spec = ModelSpec.load(str(model_size))
            else:
                nearest = min(known_models().values(), key=lambda one: abs(one["num_parameters"] - wanted))
                spec = from_config(nearest["config"], name=str(nearest["hub_ids"][0]))
                if wanted and abs(nearest["num_parameters"] / wanted - 1) > FAR:
                    stands = f"{spec.name}, of {nearest['num_parameters'] / 1e9:.1f}B, is planned for"
                    say(f"warning: model_size={model_size}: no known model is near it; {stands}. Fix: name yours")
            run = from_dict(
                {
                    "model": {"name": spec.name, "max_seq_length": max_seq_length, "load_in_4bit": load_in_4bit},
                    "batch": {"global_size": 8 * count if target_batch_size is None else target_batch_size},
                    "distributed": {"num_processes": count},
                },
                to_plan=True,
            )
            decided = plan(run, hardware, spec, elsewhere=True)
        except ConfigError as error:
            raise _in_arguments(error, hardware, model_size, seen=available_memory is None) from None
        keeps_all = decided.keep_activations is not None and decided.keep_activations >= spec.num_layers
        return {
            "num_gpus": count,
            "batch_size_per_gpu": decided.batch.per_device,
            "gradient_accumulation_steps": decided.batch.accumulation,
            "strategy": decided.strategy if count > 1 else None,
            "enable_memory_optimization": True,
            "enable_gradient_checkpointing": False if keeps_all else None,
        }

    def save_config(self, config: MultiGPUConfig | Mapping[str, Any], filename: str = "multi_gpu_config") -> Path:
        """Write `config` to a YAML file and return its path; raises `ConfigError` for one that is wrong, and where no
        file can be written."""
        values = _values(config)
        raise_errors(self.validate_config(values))
        path = self._path(filename)
        try:
            write_atomically(path, yaml.safe_dump(values, sort_keys=False))
        except OSError as error:
            consequence, fix = f"can't be written: {error.strerror}.", "ConfigManager(…) with a folder of yours"
            raise ConfigError(Problem(key=str(path), consequence=consequence, fix=fix)) from None
        return path

    def load_config(self, filename: str = "multi_gpu_config") -> dict[str, Any]:
        """Return what a file holds, or the template of that name where there is no such file.

        Raises `ConfigError` for a file that can't be read, and for keys or values that are wrong in it.
        """
        path = self._path(filename)
        if not path.is_file() and filename in TEMPLATES:
            return MultiGPUConfig(**TEMPLATES[filename]).to_dict()
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            consequence = f"{getattr(error, 'strerror', None) or 'is no text'}."
            fix = f"one of: {', '.join(dict.fromkeys([*self.list_configs(), *TEMPLATES]))}"
            raise ConfigError(Problem(key=str(path), consequence=consequence, fix=fix)) from None
        except yaml.YAMLError as error:
            fix = "correct the YAML there"
            raise ConfigError(Problem(key="(file)", consequence=yaml_fault(error), fix=fix, file=str(path))) from None
        if not isinstance(values, dict):
            fix = "write key: value, for example num_gpus: 2"
            raise ConfigError(Problem(key="(file)", consequence="holds no keys.", fix=fix, file=str(path)))
        raise_errors(self.validate_config(values, file=str(path)))
        return values

    def list_configs(self) -> list[str]:
        """Return the names of the files in `config_dir`, sorted; each is one that `load_config` takes."""
        files = [*self.config_dir.glob("*.yaml"), *self.config_dir.glob("*.yml")]
        return sorted(path.stem if path.suffix == ".yaml" else path.name for path in files)

    def compare_configs(
        self, config1: MultiGPUConfig | Mapping[str, Any], config2: MultiGPUConfig | Mapping[str, Any]
    ) -> dict[str, tuple[Any, Any]]:
        """Return the arguments in which two configs differ, with both values; what one leaves out is its default."""
        one, other = ({**MultiGPUConfig().to_dict(), **_values(config)} for config in (config1, config2))
        return {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}

    def validate_config(self, config: MultiGPUConfig | Mapping[str, Any], *, file: str = "") -> list[Problem]:
        """Return all that is wrong with `config`; empty where `enable_multi_gpu(**config)` would take it anywhere."""
        values = _values(config)
        return errors([*unknown(values, file=file), *value_problems(values, file=file)])

    def create_default_configs(self) -> list[Path]:
        """Write every template to `config_dir`, where no file of its name is; returns their paths."""
        made = []
        for name, values in TEMPLATES.items():
            if not self._path(name).is_file():
                self.save_config(MultiGPUConfig(**values), name)
            made.append(self._path(name))
        return made

    def _path(self, filename: str) -> Path:
        name = Path(filename)
        return self.config_dir / (name if name.suffix in (".yaml", ".yml") else f"{name}.yaml")


def get_default_config() -> MultiGPUConfig:
    """Return the defaults of `enable_multi_gpu`."""
    return MultiGPUConfig()


def _values(config: MultiGPUConfig | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(config, MultiGPUConfig):
        return config.to_dict()
    if not isinstance(config, Mapping):
        consequence, fix = "is no config.", 'a MultiGPUConfig or a dict, such as {"num_gpus": 2}'
        raise ConfigError(Problem(key="config", value=type(config).__name__, consequence=consequence, fix=fix))
    return dict(config)


def _parameters(size: str | float | None) -> float | None:
    """Return the number of parameters that `size` says, 0 for None; None where it names a model."""
    if size is None:
        return 0.0
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if isinstance(size, str) and match is None and size.strip():
        return None
    number = float(match[1]) * {"b": 1e9, "m": 1e6}[match[2].lower()] if match else size
    if isinstance(number, bool) or not isinstance(number, int | float) or not 1e6 <= number < math.inf:
        consequence = "is no model's number of parameters."
        small = isinstance(size, int | float) and not isinstance(size, bool) and 0 < size < 1e4
        fix = f'model_size="{size if small else 7}B", or a model\'s hub id or directory'
        raise ConfigError(Problem(key="model_size", value=size, consequence=consequence, fix=fix))
    return float(number)


def _in_arguments(error: ConfigError, hardware: Hardware, model_size: Any, *, seen: bool) -> ConfigError:
    """Return what the planner, or the check of its run, refused, in the words of `get_optimal_config`'s arguments.

    `seen`: whether the GPUs of `hardware` are this machine's, so that others need their memory said.
    """
    from ..planning.ways import Refused

    def told(way: Any) -> str:
        values = {ARGUMENTS[key]: value for key, value in way.changes.items()}
        if way.gpus:
            values["num_gpus"] = way.gpus
            values |= {"available_memory": f"{hardware.devices[0].memory_gib:g}GB"} if seen else {}
        words = ", ".join(
            f"{name}={json.dumps(value) if isinstance(value, str) else value}" for name, value in values.items()
        )
        return words + (f" ({way.result})" if way.result else "")

    problems = [replace(problem, key=ARGUMENTS.get(problem.key, problem.key)) for problem in error.problems]
    problems = [
        replace(problem, value=model_size or problem.value) if problem.key == "model_size" else problem
        for problem in problems
    ]
    if isinstance(error, Refused):
        ways = [way for group in error.groups for way in group if ARGUMENTS.keys() >= way.changes.keys()]
        fix = ", or ".join(map(told, ways)) or error.instead
        problems = [replace(problem, fix=fix) for problem in problems]
    elif any(problem.key == "model_size" for problem in problems):
        problems = [replace(problem, fix=f'{problem.fix}, or a size such as "7B"') for problem in problems]
    return ConfigError(problems)


def _hardware(seen: Hardware, count: int, memory: str | float | None) -> Hardware:
    """Return `count` GPUs with so much memory each, beside this machine's cores; its own GPUs where nothing is said."""
    if memory is None:
        if len(seen.devices) >= count:
            return seen
        consequence = f"is unknown: {len(seen.devices)} of {count} GPUs can be seen here."
        raise ConfigError(Problem(key="available_memory", consequence=consequence, fix='available_memory="24GB"'))
    match = _MEMORY.fullmatch(str(memory))
    if match is None:
        consequence, fix = "is no amount of memory.", 'available_memory="24GB", of each GPU'
        raise ConfigError(Problem(key="available_memory", value=memory, consequence=consequence, fix=fix))
    gib = float(match[1]) / (1024 if (match[2] or "g").lower().startswith("m") else 1)
    if not 1 <= gib <= 4096:
        consequence, fix = f"are {gib:g} GiB, which no GPU has.", 'available_memory="24GB", of each GPU'
        raise ConfigError(Problem(key="available_memory", value=memory, consequence=consequence, fix=fix))
    capability = min((device.compute_capability for device in seen.devices), default=(8, 0))
    devices = tuple(
        Device(name=f"a GPU of {gib:g} GiB", index=index, memory_gib=gib, compute_capability=capability)
        for index in range(count)
    )
    return Hardware(
        devices=devices,
        cpu_cores=seen.cpu_cores,
        host_memory_gib=seen.host_memory_gib,
        host_known=False,
        reason="as it was asked for",
    )
