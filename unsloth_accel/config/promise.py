"""Promise: what the launched processes must find; made by the launcher, checked inside each process.

It travels in an environment variable, or is read from the accelerate config that a user launched with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..strategies import strategy_of

PLANNED = "the plan"
PROMISE = "UNSLOTH_ACCEL_PROMISE"
"""Environment variable: JSON of the `Promise` that `unsloth-accel launch` made for its processes."""
IN_COMMENT = "# unsloth_accel sets:"
"""How the line of a config file begins that holds variables, `NAME=value` each; accelerate refuses unknown keys."""
PROMISED_IN_COMMENT = "# unsloth_accel promises:"
"""How the line of a plan's config file begins that holds what accelerate has no key for, `name=number` each."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    num_processes: int
    """Number of processes over all machines."""
    strategy: str | None = None
    """Name of the strategy; None where it is not promised."""
    device: Literal["cuda", "cpu"] | None = None
    """Device to train on; None where it is not promised."""
    rows_per_step: int | None = None
    """Rows per optimizer step over all processes; None where they are not promised."""
    memory_gib: float | None = None
    """Estimated GiB that torch allocates on each GPU at the peak of a step, less than it and CUDA hold; None where the
    plan has no estimate."""
    keep_activations: int | None = None
    """Decoder blocks that keep their activations; None where that is left to Unsloth."""
    made_by: str = PLANNED
    """Source of the promise: the plan, a config file's path, or WORLD_SIZE."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that each process needs before Unsloth is imported, where a config file says them."""


def variables_for(promised: Promise, *, gpus: bool) -> dict[str, str]:
    """What a launcher sets for the processes of `promised`, on a machine that has GPUs or not.

    `accelerate launch` exports a config's use_cpu for one process only; without it several processes never form a group
    and each trains alone (accelerate 1.15, state.py: PartialState with distributed_type NO).
    """
    variables = {PROMISE: json.dumps(asdict(promised)), **promised.environment}
    if promised.device == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"
        if gpus:
            variables["UNSLOTH_FORCE_CPU"] = "1"
    return variables


OTHER_KINDS = ("cpu", "multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm", "tpu")
"""Flags of `accelerate launch` that choose another kind of launch than its config file's."""


def promise_of_config(config: Any, file: str, num_processes: int | None = None, text: str = "") -> Promise | None:
    """What accelerate config `config` (read from `file`) asks for; None for the kinds this package doesn't know.

    `text` is the file's, whose comment may hold variables (`in_comment`).
    """
    kind = config.get("distributed_type") if isinstance(config, dict) else None
    kind = "NO" if kind is False else kind  # an unquoted NO, by which accelerate starts one process too
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"):
        return None
    if config.get("mpirun_config"):
        return None  # mpirun starts the processes and counts them in its own variables
    planned = number(str(config.get("num_processes", 1))) or 1
    planned = 1 if kind == "NO" else planned
    count = num_processes or planned
    promised = promised_in_comment(text)
    if count != planned:  # then they were estimated for another division of the model
        promised.pop("memory_gib", None)
        promised.pop("keep_activations", None)
    on_cpu = config.get("use_cpu") is True or kind == "MULTI_CPU"
    section = config.get("fsdp_config")
    version = section.get("fsdp_version", section.get("version")) if isinstance(section, dict) else None
    variables = in_comment(text)
    strategy = strategy_of(kind, version, variables).name
    return Promise(
        num_processes=count,
        # One process is DDP or not, depending on the type; both are right.
        strategy=None if count == 1 else strategy,
        device="cpu" if on_cpu else "cuda",
        made_by=file,
        environment=variables,
        **promised,
    )


def as_comment(variables: Mapping[str, str], promised: Promise | None = None) -> str:
    """The lines of a config file that hold `variables` and what `promised` says beyond accelerate's keys.

    `in_comment` and `promised_in_comment` read them; empty where there is nothing to hold.
    """
    numbers = {name: getattr(promised, name, None) for name in _NUMBERS}
    told = {name: str(value) for name, value in numbers.items() if value is not None}
    lines = ((IN_COMMENT, variables), (PROMISED_IN_COMMENT, told))
    return "".join(f"{' '.join([begin, *map('='.join, pairs.items())])}\n" for begin, pairs in lines if pairs)


def in_comment(text: str) -> dict[str, str]:
    """The variables that a config file's comment holds; only Unsloth's own, so that a file can't set just anything."""
    return {name: value for name, value in _pairs(text, IN_COMMENT) if name.startswith("UNSLOTH_FSDP2") and value}


def promised_in_comment(text: str) -> dict[str, Any]:
    """The fields of a `Promise` that a config file's comment holds; what is no number is left out."""
    found: dict[str, Any] = {}
    for name, value in _pairs(text, PROMISED_IN_COMMENT):
        with suppress(ValueError):
            found |= {name: _NUMBERS[name](value)} if name in _NUMBERS else {}
    return found


_NUMBERS: dict[str, Callable[[str], float]] = {"rows_per_step": int, "memory_gib": float, "keep_activations": int}
"""The fields of a `Promise` that stand in a config file's comment, and how each is read."""


def _pairs(text: str, begin: str) -> list[tuple[str, str]]:
    words = [word for line in text.splitlines() if line.startswith(begin) for word in line.split()]
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def number(text: str | None) -> int | None:
    """The whole number in `text`; None where there is none."""
    return int(text) if text and text.isdigit() else None
