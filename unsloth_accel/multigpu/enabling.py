"""enable_multi_gpu: one call in an Unsloth and TRL script that has it run on several GPUs."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ..adapters import environment, rank_checks
from ..errors import ConfigError, Problem, raise_errors
from ..strategies import usual
from .asked import MultiGPUConfig, unknown, value_problems
from .grpo_support import disable_grpo_support
from .launched_count import PlainErrors, settled_count
from .patched import STATE, install, restore, say

DEBUG = "TORCH_DISTRIBUTED_DEBUG"
"""Variable of torch: with INFO DDP names the parameters without a gradient. With DETAIL, which compares collectives,
torch 2.13 dies of a segmentation fault when it makes DDP over gloo."""
_errors = PlainErrors()
_variables: dict[str, str | None] = {}


def enable_multi_gpu(
    num_gpus: int | None = None,
    batch_size_per_gpu: int | None = None,
    *,
    ddp_backend: str | None = None,
    enable_memory_optimization: bool = True,
    enable_gradient_checkpointing: bool | None = None,
    find_unused_parameters: bool | None = None,
    gradient_accumulation_steps: int | None = None,
    strategy: str | None = None,
    debug: bool = False,
    launch: bool = False,
    **other: Any,
) -> None:
    """Let an Unsloth and TRL script train on several GPUs, unchanged else. Call it before the model is made.

    Every Trainer that then trains or evaluates is adapted (`unsloth_accel.adapt`) and observed
    (`unsloth_accel.observe`), and models are loaded onto their process's own GPU.

    `num_gpus`: processes, one per GPU; by default all that were launched, or all GPUs that are seen. In a process that
    was launched it must be the launch's number. By plain `python` with several GPUs it prints the commands that launch
    the script and raises `LaunchError` with exit status 2; with one GPU, and on a CPU, it trains in one process.
    `launch`: launch the script from here in place of printing, and end with its status.
    `strategy`: that of the printed launch, `ddp` by default; in a launched process it must be the launch's.
    `batch_size_per_gpu`, `gradient_accumulation_steps`, `find_unused_parameters`: written into the Trainer's config
    (per_device_train_batch_size, …, ddp_find_unused_parameters), whose own values give way, and that is said.
    `ddp_backend`: of torch.distributed. On a CPU `nccl`, which is for GPUs, gives way to gloo; the sums are the same.
    `enable_memory_optimization`: DDP keeps gradients in its buckets, a step that runs out of memory on a GPU is done
    again in halves, and memory that runs short is told.
    `enable_gradient_checkpointing`: True has every decoder block recompute its activations, False none; by default it
    is as the model was made.
    `debug`: torch logs how DDP is made, and names parameters that got no gradient (TORCH_DISTRIBUTED_DEBUG=INFO).

    Called again with the same arguments it does nothing. Raises `ConfigError` for arguments that can't be had, and for
    other ones than those that are in force.
    """
    config = MultiGPUConfig(
        num_gpus=num_gpus,
        batch_size_per_gpu=batch_size_per_gpu,
        ddp_backend=ddp_backend,
        enable_memory_optimization=enable_memory_optimization,
        enable_gradient_checkpointing=enable_gradient_checkpointing,
        find_unused_parameters=find_unused_parameters,
        gradient_accumulation_steps=gradient_accumulation_steps,
        strategy=strategy,
        debug=debug,
        launch=launch,
    )
    _errors.show()
    raise_errors([*value_problems(config.to_dict()), *unknown(other)])
    if STATE.config is not None:
        _check_again(config)
        return
    count = settled_count(num_gpus, strategy=strategy, launch=launch)
    config = replace(config, ddp_backend=_backend(ddp_backend))
    if debug:
        _variables[DEBUG] = os.environ.get(DEBUG)
        _set_debug("INFO")
    STATE.config, STATE.num_processes, STATE.asked = config, count, replace(config, ddp_backend=ddp_backend)
    _warn_of_trainers()
    install()


def disable_multi_gpu() -> None:
    """Undo `enable_multi_gpu` and `enable_grpo_support`: every name and variable is as before.

    A trainer that was adapted stays so; one that wasn't trains as if nothing had been there.
    """
    if STATE.config is None and not STATE.grpo:
        _errors.undo()
        return
    disable_grpo_support()
    restore()
    STATE.config = STATE.asked = None
    STATE.num_processes, STATE.loaded = 1, 0
    STATE.told.clear()
    if DEBUG in _variables:
        _set_debug(_variables.pop(DEBUG))
    _errors.undo()


def is_multi_gpu_enabled() -> bool:
    """Return whether `enable_multi_gpu` is in force."""
    return STATE.config is not None


def get_active_config() -> MultiGPUConfig | None:
    """Return what `enable_multi_gpu` was asked for; None where it is not in force."""
    return STATE.asked


def get_multi_gpu_status() -> dict[str, Any]:
    """Return what is in force: `enabled`, `num_processes`, `rank`, `strategy` as it really runs, `adapted_trainers`
    (their number), `grpo`, and the `config` as a dict or None.

    `strategy` is None before several processes have a group, and in one process that nothing was enabled in.
    """
    import torch

    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = usual(1).name if STATE.config is not None and STATE.num_processes == 1 else None
    return {
        "enabled": STATE.config is not None,
        "num_processes": STATE.num_processes,
        "rank": environment.rank(),
        "strategy": rank_checks.running() if grouped else alone,
        "adapted_trainers": len(STATE.adapted),
        "grpo": STATE.grpo,
        "config": STATE.asked.to_dict() if STATE.asked else None,
    }


def _set_debug(level: str | None) -> None:
    """Set torch's variable to `level`, None for unset; torch itself reads it when it is imported, which was before."""
    import torch

    if level is None:
        os.environ.pop(DEBUG, None)
    else:
        os.environ[DEBUG] = level
    if torch.distributed.is_available():
        torch.distributed.set_debug_level_from_env()


def _check_again(config: MultiGPUConfig) -> None:
    """Raise `ConfigError` where `config` is other than what is in force."""
    now = STATE.asked or MultiGPUConfig()
    changed = [name for name, value in config.to_dict().items() if value != getattr(now, name)]
    raise_errors(
        [
            Problem(
                key=name,
                value=getattr(config, name),
                consequence=f"enable_multi_gpu is in force with {name}={getattr(now, name)}.",
                fix="disable_multi_gpu() before, or the same arguments",
            )
            for name in changed
        ]
    )


def _backend(asked: str | None) -> str | None:
    """Return the backend to name in the Trainer's config; None is accelerate's own choice.

    Raises `ConfigError` for one that the installed torch hasn't.
    """
    import torch

    if asked is None:
        return None
    on_gpus = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    usual = "nccl" if on_gpus else "gloo"
    if asked == "nccl" and not on_gpus:
        say("ddp_backend=nccl is for GPUs: on this CPU gloo sums the gradients")
        return None
    there = {
        "nccl": torch.distributed.is_nccl_available,
        "gloo": torch.distributed.is_gloo_available,
        "mpi": torch.distributed.is_mpi_available,
        "ucc": torch.distributed.is_ucc_available,
    }
    if not there[asked]():
        consequence = f"torch {torch.__version__} was built without it: no process group could be made."
        fix = f'ddp_backend="{usual}", or leave it out'
        raise ConfigError(Problem(key="ddp_backend", value=asked, consequence=consequence, fix=fix))
    return None if asked == usual else asked


def _warn_of_trainers() -> None:
    """Warn of Trainers that were made before: Unsloth has bound their `train` already."""
    import gc
    import sys

    transformers = sys.modules.get("transformers.trainer")
    kind: Any = transformers and transformers.Trainer
    made = [one for one in gc.get_objects() if kind and issubclass(type(one), kind)]  # no isinstance: proxies answer it
    if made:
        kinds = ", ".join(sorted({type(one).__name__ for one in made}))
        say(
            f"warning: {kinds} was made before enable_multi_gpu and may train as it is. Fix: call it before, or "
            "unsloth_accel.adapt(trainer)"
        )
