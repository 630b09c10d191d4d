"""Checks of the shell's variables and of accelerate's default config: what a launch takes over without being asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..config.safe_reader import TRUE, read_yaml
from ..errors import counted, errors
from .machine import Machine
from .result import Result, error, warning

SET_BY_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LEFT_OVER = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
HARMLESS = ("ACCELERATE_LOG_LEVEL", "ACCELERATE_DISABLE_RICH", "ACCELERATE_ENABLE_RICH", "ACCELERATE_DEBUG_VERBOSITY")
UNSLOTH_CHOICES = {
    "UNSLOTH_FSDP2": "every run shards with Unsloth's own FSDP2, whatever its config says",
    "UNSLOTH_TP_SIZE": "every run splits the model over GPUs with Unsloth's tensor parallelism",
    "UNSLOTH_ALLOW_CPU": "Unsloth pretends to have CUDA, for its own tests, and loads no model",
}


def visible_devices(machine: Machine) -> Iterator[Result]:
    """CUDA_VISIBLE_DEVICES against the GPUs that are there."""
    said = machine.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(machine.nvml.uuids)
    if said is None or not there:
        return
    name, value = "CUDA_VISIBLE_DEVICES", repr(said)
    fix = f"unset CUDA_VISIBLE_DEVICES, or name some of the GPUs 0 to {there - 1}"
    named = [token for token in said.split(",") if token.strip()]
    visible = len(machine.hardware.devices)
    if not named or named[0].strip() == "-1":
        yield warning(name, f"{value} hides {counted(there, 'GPU')}, so runs train on the CPU", fix)
    elif not visible:
        yield error(name, f"{value} names none of {counted(there, 'GPU')}", fix)
    elif visible < len(named):
        detail = f"{value} gives {counted(visible, 'GPU')}: CUDA stops at the first wrong or repeated name, "
        yield warning(name, f"{detail}and takes one MIG instance", fix)
    else:
        yield Result(name=name, detail=f"{said}: {visible} of {counted(there, 'GPU')}")


def variables(machine: Machine) -> Iterator[Result]:
    """Variables that change or slow every run started from this shell."""
    found = [*_from_a_launcher(machine.environ), *_choices(machine), *_slow(machine.environ), *_network(machine)]
    yield from found
    if not found:
        yield Result(name="environment", detail="no variable that changes or slows a run")


def _from_a_launcher(environ: Mapping[str, str]) -> Iterator[Result]:
    stray = [name for name in SET_BY_LAUNCHERS if name in environ]
    if stray:
        detail = f"{_shown(environ, stray)}: left by a launcher; a plain `python train.py` waits for processes that "
        yield warning("environment", f"{detail}never come", f"unset {' '.join(stray)}")
    left = [name for name in sorted(environ) if name.startswith(LEFT_OVER) and name not in HARMLESS]
    if left:
        detail = f"{_shown(environ, left)}: accelerate takes each over where a config says nothing"
        yield warning("environment", detail, f"unset {' '.join(left)}", "accelerate/utils/launch.py, dataclasses.py")


def _choices(machine: Machine) -> Iterator[Result]:
    environ = machine.environ
    for name, consequence in UNSLOTH_CHOICES.items():
        off = ("", "0", "false", "1") if name == "UNSLOTH_TP_SIZE" else ("", "0", "false")
        if environ.get(name, "").lower() not in off:
            yield warning(name, f"{environ[name]}: {consequence}", f"unset {name}")
    if _on(environ, "UNSLOTH_FORCE_CPU") and not machine.without_gpu:
        count = len(machine.hardware.devices)
        detail = f"Unsloth trains on the CPU beside {counted(count, 'GPU')}"
        yield warning("UNSLOTH_FORCE_CPU", detail, "unset UNSLOTH_FORCE_CPU")
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE") if _on(environ, name)]
    if offline:
        detail = f"{_shown(environ, offline)}: only models and data sets that are already in the cache load"
        yield warning("environment", detail, f"unset {' '.join(offline)}, unless this machine has no network")


def _slow(environ: Mapping[str, str]) -> Iterator[Result]:
    if _on(environ, "CUDA_LAUNCH_BLOCKING"):
        detail = "each kernel waits for the one before; it is for finding a failing kernel"
        yield warning("CUDA_LAUNCH_BLOCKING", detail, "unset CUDA_LAUNCH_BLOCKING")
    if environ.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        detail = "every collective is checked on all ranks first; it is for finding a hang"
        yield warning("TORCH_DISTRIBUTED_DEBUG", detail, "unset TORCH_DISTRIBUTED_DEBUG")


def _network(machine: Machine) -> Iterator[Result]:
    environ, direct = machine.environ, set(machine.nvml.links.values())
    if _on(environ, "NCCL_P2P_DISABLE") and direct & {"NVLink", "PCIe"}:
        way = "NVLink" if "NVLink" in direct else "PCIe"
        detail = f"GPUs here are joined by {way}, and NCCL is told to go through host memory"
        yield warning("NCCL_P2P_DISABLE", detail, "unset NCCL_P2P_DISABLE, unless the all-reduce hangs without it")


def accelerates_home(environ: Mapping[str, str]) -> Path:
    """Return where accelerate keeps its default config (accelerate/commands/config/config_args.py: `cache_dir`, which
    takes seconds to import, with torch). Other than huggingface_hub it takes an empty variable, and puts nothing in the
    place of a `$NAME` in one."""
    cache = os.path.join(environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.path.expanduser(environ.get("HF_HOME", cache)), "accelerate")


def default_config(machine: Machine) -> Iterator[Result]:
    """accelerate's default config file, which an `accelerate launch` without --config_file takes."""
    found = accelerates_home(machine.environ) / "default_config.yaml"
    if not found.is_file():
        yield Result(name="accelerate config", detail="no default config, so none is taken silently")
        return
    read = read_yaml(found)
    config, faults = read.values, errors(read.problems)
    if faults:
        detail = f"{found}, which an `accelerate launch` without --config_file takes, can't be used: "
        yield error("accelerate config", f"{detail}{faults[0].consequence}", f"rm {found}, or accelerate config")
        return
    said = ", ".join(f"{key}: {config[key]}" for key in ("distributed_type", "num_processes") if key in config)
    detail = f"{found} ({said}): an `accelerate launch` without --config_file takes it silently"
    fix = f"always pass --config_file (unsloth-accel launch does), or rm {found}"
    yield warning("accelerate config", detail, fix, "accelerate/commands/config/config_args.py: default_config_file")


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in TRUE


def _shown(environ: Mapping[str, str], names: list[str]) -> str:
    return " ".join(f"{name}={environ[name]}" for name in names)
