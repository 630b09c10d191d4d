"""unsloth_accel: run Unsloth on more than one GPU, through Hugging Face Accelerate.

Import it before unsloth: in a launched process it sets what must be set before accelerate starts. Everything else is
loaded when first used, so this import costs milliseconds and no torch.
"""

from __future__ import annotations

import importlib
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from .adapters.environment import prepare as _prepare

if TYPE_CHECKING:
    from . import callbacks as callbacks
    from .accelerate_config import AccelerateConfig as AccelerateConfig
    from .adapters.batches import balance_tokens as balance_tokens
    from .adapters.fsdp import sharded_loading as sharded_loading
    from .adapters.generation import generating as generating
    from .adapters.loop import prepare as prepare
    from .adapters.saving import save as save
    from .adapters.trainer import adapt as adapt
    from .hardware import Hardware as Hardware
    from .memory import MemoryEstimate as MemoryEstimate
    from .model_spec import ModelSpec as ModelSpec
    from .notebook import notebook_launch as notebook_launch
    from .planner import Plan as Plan
    from .problems import ConfigError as ConfigError
    from .problems import Problem as Problem
    from .run_config import RunConfig as RunConfig

__version__ = "0.1.0"

_HOME = {
    "AccelerateConfig": "accelerate_config",
    "ConfigError": "problems",
    "Hardware": "hardware",
    "MemoryEstimate": "memory",
    "ModelSpec": "model_spec",
    "Plan": "planner",
    "Problem": "problems",
    "RunConfig": "run_config",
    "adapt": "adapters.trainer",
    "balance_tokens": "adapters.batches",
    "generating": "adapters.generation",
    "notebook_launch": "notebook",
    "save": "adapters.saving",
    "sharded_loading": "adapters.fsdp",
    "prepare": "adapters.loop",
}
__all__ = [*_HOME, "callbacks", "plan"]


def plan(run: str | PathLike[str] | RunConfig, *overrides: str, hardware: Hardware | str | None = None) -> Plan:
    """Plan a run: `run` is a YAML file's path or a `RunConfig`; overrides are `key=value`.

    `hardware` is this machine's unless it is given, as text (`8xH100-80GB`) or as `Hardware`; the versions installed
    here bind a plan for this machine only.
    Raises `ConfigError` with every problem of the description, or with what would fit where the model does not.
    """
    from .capabilities import here
    from .hardware import Hardware
    from .planner import plan as make_plan
    from .run_config import RunConfig, load

    if isinstance(hardware, str):
        hardware = Hardware.parse(hardware)
    described = run if isinstance(run, RunConfig) else load(fspath(run), overrides)
    return make_plan(described, hardware or Hardware.detect(), capabilities=here(), elsewhere=hardware is not None)


def __getattr__(name: str) -> Any:
    if name == "callbacks":
        return importlib.import_module(".callbacks", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


_prepare()
