"""enable_grpo_support: GRPO scripts of the older package as they are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .patched import STATE, install, restore


def enable_grpo_support() -> None:
    """Let GRPO configs that are made from now on hold whole groups, and trainers answer without vLLM where it is not
    installed.

    The adapters of GRPO itself (weights gathered while answers are written, packing that all ranks agree on, groups
    kept by TRL's own sampler) belong to `enable_multi_gpu` or `adapt`, with which this is used. A config whose rows per
    step (per device × processes × accumulation) hold no whole number of `num_generations` answers accumulates more
    micro-batches until they do, and says so: TRL refuses it otherwise.
    """
    if not STATE.grpo:
        STATE.grpo = True
        install()


def disable_grpo_support() -> None:
    """Undo `enable_grpo_support`; configs and trainers that were made stay as they are."""
    if STATE.grpo:
        STATE.grpo = False
        if STATE.config is None:
            restore()
        else:
            install()


def get_grpo_status() -> dict[str, Any]:
    """Return whether it is on, and whether vLLM is installed."""
    return {"enabled": STATE.grpo, "vllm": find_spec("vllm") is not None}
