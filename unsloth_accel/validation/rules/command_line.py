"""Flags of `accelerate launch` laid over a config's keys, as accelerate does it: what is launched is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .document import Context, Document
from .names import NESTED_KEYS, TOP_LEVEL_KEYS
from .trying import changed

KINDS = {
    "multi_gpu": "MULTI_GPU",
    "use_fsdp": "FSDP",
    "use_deepspeed": "DEEPSPEED",
    "use_megatron_lm": "MEGATRON_LM",
    "tpu": "XLA",
}
"""Flags that choose the kind of launch, and the distributed_type that each stands for."""


def overlaid(values: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a config's `values` with the command line's `flags` in their place, and the flag behind each dotted key.

    Flags that no key of a config stands for are left out.
    """
    changes: dict[str, Any] = {}
    given: dict[str, str] = {}
    for flag, value in flags.items():
        found: dict[str, Any] = {}
        if flag in KINDS:
            found = {"distributed_type": KINDS[flag]}
        elif flag == "cpu":  # the simple launcher takes over, whatever the file's kind is
            found = {"use_cpu": True, "distributed_type": "NO"}
        elif flag in TOP_LEVEL_KEYS:
            found = {flag: value}
        elif section := _section(flag):
            found = {f"{section}.{_written(values.get(section), flag)}": value}
        changes |= found
        given |= dict.fromkeys(found, f"--{flag}")
    return changed(values, changes), given


def of_flags(context: Context) -> Document:
    """Return what a launch without a config file is: its flags, and what accelerate takes where they say nothing."""
    gpus = len(context.hardware.devices) if context.hardware else 0
    count = context.flags.get("num_processes") or max(gpus, 1)
    kind = "MULTI_GPU" if count > 1 and gpus > 1 else "NO"
    values = {"distributed_type": kind, "num_processes": count, "num_machines": 1}
    values, flagged = overlaid(values, context.flags)
    return Document(file="", kind="accelerate", values=values, context=context, flagged=flagged)


def _section(flag: str) -> str | None:
    if flag.startswith("fsdp_"):
        return "fsdp_config"
    return next((section for section, known in NESTED_KEYS.items() if flag in known), None)


def _written(section: Any, flag: str) -> str:
    """Return the name that a section has for `flag`: accelerate lets one leave some prefixes out."""
    short = flag.removeprefix("fsdp_").removeprefix("fp8_").removeprefix("dynamo_")
    return short if isinstance(section, dict) and short in section and flag not in section else flag
