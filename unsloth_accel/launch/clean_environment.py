"""State of a notebook's kernel that the processes of a launch must not get: variables, and GPU memory.

A kernel lives long: Unsloth has been imported in it, a model trained, another launch tried. Libraries keep state in
`os.environ`, which a child process would take for the user's wish.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..hardware.nvml import ask, opened, opened_gpus

LAUNCH = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|GROUP_WORLD_SIZE|NODE_RANK|ROLE_.*|MASTER_ADDR|MASTER_PORT"
    r"|TORCHELASTIC_.*|FORK_LAUNCHED|ACCELERATE_.*|FSDP_.*|PARALLELISM_CONFIG_.*|MEGATRON_LM_.*|UNSLOTH_ACCEL_PROMISE"
    r"|UNSLOTH_ACCEL_LAUNCH|UNSLOTH_ACCEL_DESCRIPTION"
)
"""Variables of another launch. accelerate and trl set them in the kernel too (`Accelerator(fsdp_plugin=…)`, accelerate
1.15 accelerator.py; trl 1.15 trainer/utils.py), and Unsloth leaves ACCELERATE_MIXED_PRECISION behind every training
(unsloth/models/rl.py). A launch of one process would take RANK and WORLD_SIZE for its own."""

STATE = re.compile(
    # Marks "it is loaded and patched", which a fresh process is not (unsloth/__init__.py, unsloth_zoo/__init__.py).
    r"UNSLOTH_(IS_PRESENT|ZOO_IS_PRESENT|PATCHED|GPT_OSS_BNB4BIT_PATCHED|HAS_FBGEMM"
    # Facts of the model that the kernel loaded last (unsloth/models/{loader,llama,vision}.py, unsloth_zoo/compiler.py).
    r"|MODEL_NAME|IGNORED_TOKENIZER_NAMES|USE_NEW_MODEL|ENABLE_FULL_FINETUNING|FORCE_FLOAT32|FORCE_CUSTOM_DTYPE"
    r"|MIXED_PRECISION|BFLOAT16_MIXED_PRECISION|HIGH_PRECISION_LAYERNORM|DISABLE_STATIC_GENERATION|bnb_4bit_compute_dtype"
    r"|ENABLE_FLEX_ATTENTION|FULLGRAPH|CLEF_COMPILE|WARN_UNINITIALIZED|VLLM_BATCHES"
    # What its trainer asked the forward pass to return: GRPO leaves hidden states in place of logits
    # (unsloth/models/rl.py).
    r"|RETURN_LOGITS|RETURN_HIDDEN_STATES)"
    # The inline plotting of the kernel (ipykernel), which only works in one.
    r"|MPLBACKEND"
)
"""Variables that libraries keep state in; a launch gets what the kernel itself was started with. What Unsloth sets
alike in every process (allocator, tokenizers, downloads) is left: the ranks would set the same, and a user's value
counts."""


def environment_for_launch(
    environ: Mapping[str, str] = os.environ, started_with: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`environ` without what libraries have left in it; `started_with` is the kernel's own at its start."""
    started_with = _started_with() if started_with is None else started_with
    kept: dict[str, str] = {}
    for name, value in environ.items():
        if not _leftover(name, value):
            kept[name] = value
        elif name in started_with and not LAUNCH.fullmatch(name):
            kept[name] = started_with[name]
    return kept


def _leftover(name: str, value: str) -> bool:
    if name == "UNSLOTH_COMPILE_DISABLE":  # "1" is the user's; "partial" is Unsloth's, for the model loaded last
        return value == "partial"
    return bool(LAUNCH.fullmatch(name) or STATE.fullmatch(name))


def _started_with() -> dict[str, str]:
    """Return the environment that this process was started with; empty where the system doesn't keep it."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def memory_problems() -> list[Problem]:
    """Return a warning where this process holds GPU memory, which the launched ones can't have."""
    held = _held_by_nvml() or _held_by_torch()
    if not held:
        return []
    figures = ", ".join(f"{gib:.1f} GiB on GPU {index}" for index, gib in held.items())
    consequence = "is held by this notebook's own process, and the run can't use it."
    fix = "delete the model and its trainer, then gc.collect() and torch.cuda.empty_cache(); or restart the kernel"
    return [Problem(key=figures, consequence=consequence, fix=fix, severity="warning")]


def _held_by_nvml() -> dict[int, float]:
    """Return the GiB by GPU (NVML's index) that this process holds, CUDA context included; {} where NVML has none."""

    def asked(pynvml: Any) -> dict[int, float]:
        return {index: _held_on(pynvml, one) for index, one in opened_gpus(pynvml)}

    found = opened(asked)
    return {} if isinstance(found, str) else {index: gib for index, gib in found.items() if gib}


def _held_on(pynvml: Any, handle: Any) -> float:
    processes = ask(pynvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()
    return sum(one.usedGpuMemory or 0 for one in processes if one.pid == os.getpid()) / 2**30


def _held_by_torch() -> dict[int, float]:
    """Return the GiB by GPU that torch holds, if it is loaded: in a container NVML may not know this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    held = {index: torch.cuda.memory_reserved(index) / 2**30 for index in range(torch.cuda.device_count())}
    return {index: gib for index, gib in held.items() if gib >= 0.05}
