"""What a GRPO script of one GPU needs on several: whole groups of answers in a step, and answers without vLLM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def whole_groups(args: Any, num_processes: int, say: Callable[[str], None]) -> None:
    """Raise the accumulation of GRPO's `args` until a step's rows are whole groups; other arguments are left."""
    size = getattr(args, "num_generations", None)
    if not size or args.generation_batch_size is not None or args.steps_per_generation is not None:
        return
    rows, asked = args.per_device_train_batch_size * num_processes, args.gradient_accumulation_steps
    if rows * asked % size == 0:
        return
    args.gradient_accumulation_steps = next(steps for steps in range(asked, asked + size) if rows * steps % size == 0)
    say(
        f"gradient_accumulation_steps={args.gradient_accumulation_steps} in place of {asked}: a step must hold whole "
        f"groups of num_generations={size} answers, of which {num_processes} × {args.per_device_train_batch_size} are "
        "computed at once"
    )


def without_vllm(initialise: Callable[..., None], say: Callable[[str], None]) -> Callable[..., None]:
    """Return `initialise`, of GRPO's trainer, with which the model itself writes the answers where vLLM is asked for
    and not installed."""

    @functools.wraps(initialise)
    def initialised(trainer: Any, *arguments: Any, **named: Any) -> None:
        args: Any = named.get("args", arguments[2] if len(arguments) > 2 else None)
        if getattr(args, "use_vllm", False) and find_spec("vllm") is None:
            args.use_vllm = False
            say("use_vllm: vLLM isn't installed, so the model itself writes the answers: the same training, slower")
        initialise(trainer, *arguments, **named)

    return initialised
