"""enable_grpo_support: TRL's trainers that write completions are adapted as they begin to train, whoever makes them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .patched import STATE, install, restore


def enable_grpo_support() -> None:
    """Have every `GRPOTrainer` and `RLOOTrainer` of TRL adapted (`unsloth_accel.adapt`) and its completions watched
    (`training.grpo_scripts`) when it begins to train; call it before its config is made. Once is enough.

    A config made from now on whose rows per step (per device × processes × accumulation) hold no whole number of
    `num_generations` completions accumulates more micro-batches until they do, and says so: TRL refuses it otherwise.
    Where vLLM is asked for and not installed the model itself writes GRPO's completions, and that is said. A generation
    server that can't be used raises `ConfigError` before the first step, on every rank. With `enable_multi_gpu` the
    trainer also gets what that was asked for.
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
