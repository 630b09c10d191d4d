"""unsloth_accel: run Unsloth on more than one GPU, through Hugging Face Accelerate.

Import it before unsloth: in a launched process it sets what must be set before accelerate starts. Everything else is
loaded when first used, so this import costs milliseconds and no torch.
"""

from __future__ import annotations

from .launch import safe_path as _safe_path  # noqa: F401  (first: the others might be found in the working directory)

# isort: split
import importlib
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from .adapters.environment import prepare_process as _prepare_process

if TYPE_CHECKING:
    from . import callbacks as callbacks
    from .adapters.fsdp2.generation import generating as generating
    from .adapters.fsdp2.loading import sharded_loading as sharded_loading
    from .adapters.fsdp2.loading import whole_loading as whole_loading
    from .adapters.merging import merge as merge
    from .adapters.saving import save as save
    from .adapters.token_balance import balance_tokens as balance_tokens
    from .callbacks.observed import observe as observe
    from .config.accelerate_config import AccelerateConfig as AccelerateConfig
    from .config.run_config import RunConfig as RunConfig
    from .errors import ConfigError as ConfigError
    from .errors import Problem as Problem
    from .hardware.hardware import Hardware as Hardware
    from .launch.notebook import notebook_launch as notebook_launch
    from .models.spec import ModelSpec as ModelSpec
    from .multigpu.aggregation import AggregationMethod as AggregationMethod
    from .multigpu.asked import MultiGPUConfig as MultiGPUConfig
    from .multigpu.config_manager import ConfigManager as ConfigManager
    from .multigpu.ddp_logging import get_ddp_logger as get_ddp_logger
    from .multigpu.device_manager import DeviceManager as DeviceManager
    from .multigpu.direct_trainer import MultiGPUTrainer as MultiGPUTrainer
    from .multigpu.enabling import disable_multi_gpu as disable_multi_gpu
    from .multigpu.enabling import enable_multi_gpu as enable_multi_gpu
    from .multigpu.enabling import get_active_config as get_active_config
    from .multigpu.enabling import get_multi_gpu_status as get_multi_gpu_status
    from .multigpu.enabling import is_multi_gpu_enabled as is_multi_gpu_enabled
    from .multigpu.grpo_support import disable_grpo_support as disable_grpo_support
    from .multigpu.grpo_support import enable_grpo_support as enable_grpo_support
    from .multigpu.grpo_support import get_grpo_status as get_grpo_status
    from .multigpu.memory_manager import MemoryManager as MemoryManager
    from .multigpu.sharding import shard_batch as shard_batch
    from .planning.memory_estimate import MemoryEstimate as MemoryEstimate
    from .planning.plan import Plan as Plan
    from .training.accelerator_loop import prepare as prepare
    from .training.adapt import adapt as adapt

from .version import __version__ as __version__

_HOME = {
    "AccelerateConfig": "config.accelerate_config",
    "AggregationMethod": "multigpu.aggregation",
    "ConfigError": "errors",
    "ConfigManager": "multigpu.config_manager",
    "DeviceManager": "multigpu.device_manager",
    "Hardware": "hardware.hardware",
    "MemoryEstimate": "planning.memory_estimate",
    "MemoryManager": "multigpu.memory_manager",
    "ModelSpec": "models.spec",
    "MultiGPUConfig": "multigpu.asked",
    "MultiGPUTrainer": "multigpu.direct_trainer",
    "Plan": "planning.plan",
    "Problem": "errors",
    "RunConfig": "config.run_config",
    "adapt": "training.adapt",
    "balance_tokens": "adapters.token_balance",
    "disable_grpo_support": "multigpu.grpo_support",
    "disable_multi_gpu": "multigpu.enabling",
    "enable_grpo_support": "multigpu.grpo_support",
    "enable_multi_gpu": "multigpu.enabling",
    "generating": "adapters.fsdp2.generation",
    "get_active_config": "multigpu.enabling",
    "get_ddp_logger": "multigpu.ddp_logging",
    "get_grpo_status": "multigpu.grpo_support",
    "get_multi_gpu_status": "multigpu.enabling",
    "is_multi_gpu_enabled": "multigpu.enabling",
    "merge": "adapters.merging",
    "notebook_launch": "launch.notebook",
    "observe": "callbacks.observed",
    "prepare": "training.accelerator_loop",
    "save": "adapters.saving",
    "shard_batch": "multigpu.sharding",
    "sharded_loading": "adapters.fsdp2.loading",
    "whole_loading": "adapters.fsdp2.loading",
}
__all__ = [*_HOME, "callbacks", "plan"]


def plan(
    run: str | PathLike[str] | RunConfig,
    *overrides: str,
    hardware: Hardware | str | None = None,
    price: float | None = None,
) -> Plan:
    """Plan a run: `run` is a YAML file's path or a `RunConfig`; overrides are `key=value`.

    `hardware` is this machine's unless it is given, as text (`8xH100-80GB`) or as `Hardware`; the versions installed
    here bind a plan for this machine only. With the `price` of one GPU for an hour the plan says what the run costs.
    Raises `ConfigError` with every problem of the description, or with what would fit where the model does not.
    """
    from .capabilities.probe import here
    from .config.run_config import RunConfig
    from .errors import raise_errors
    from .hardware.hardware import Hardware
    from .planning.planner import plan as make_plan
    from .validation.run_checks import read, setting_problems, told_with

    if isinstance(hardware, str):
        hardware = Hardware.parse(hardware)
    described = run if isinstance(run, RunConfig) else read(fspath(run), overrides)
    machine = hardware or Hardware.detect()
    problems = setting_problems(described, machine)
    with told_with(problems):
        made = make_plan(described, machine, capabilities=here(), elsewhere=hardware is not None, price=price)
    raise_errors(problems)
    return made


def __getattr__(name: str) -> Any:
    if name == "callbacks":
        return importlib.import_module(".callbacks", __name__)
    if name not in _HOME:
        raise importlib.import_module(".multigpu.gone", __name__).missing(__name__, name)
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    """Public names, most of which are loaded when they are first used."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


_prepare_process()
