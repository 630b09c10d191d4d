"""Promise: what the launched processes must find; made by the launcher, checked inside each process.

It travels in an environment variable, or is read from the accelerate config that a user launched with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..strategies import strategy_of

PLANNED = "the plan"
PROMISE = "UNSLOTH_ACCEL_PROMISE"
"""Environment variable: JSON of the `Promise` that `unsloth-accel launch` made for its processes."""
IN_COMMENT = "# unsloth_accel sets:"
"""How the line of a config file begins that holds variables, `NAME=value` each; accelerate refuses unknown keys."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    num_processes: int
    """All processes, over all machines."""
    strategy: str | None = None
    """None: not said."""
    device: Literal["cuda", "cpu"] | None = None
    """None: not said."""
    made_by: str = PLANNED
    """Who promised it: the plan, a config file's path, or WORLD_SIZE."""
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
    if not isinstance(config, dict) or config.get("distributed_type") not in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"):
        return None
    if config.get("mpirun_config"):
        return None  # mpirun starts the processes and counts them in its own variables
    count = num_processes or number(str(config.get("num_processes", 1))) or 1
    on_cpu = config.get("use_cpu") is True or config["distributed_type"] == "MULTI_CPU"
    section = config.get("fsdp_config")
    version = section.get("fsdp_version", section.get("version")) if isinstance(section, dict) else None
    variables = in_comment(text)
    strategy = strategy_of(config["distributed_type"], version, variables).name
    return Promise(
        num_processes=count,
        # One process is DDP or not, depending on the type; both are right.
        strategy=None if count == 1 else strategy,
        device="cpu" if on_cpu else "cuda",
        made_by=file,
        environment=variables,
    )


def as_comment(variables: Mapping[str, str]) -> str:
    """The line of a config file that holds `variables`; `in_comment` reads it."""
    return " ".join([IN_COMMENT, *(f"{name}={value}" for name, value in variables.items())])


def in_comment(text: str) -> dict[str, str]:
    """The variables that a config file's comment holds; only Unsloth's own, so that a file can't set just anything."""
    words = [word for line in text.splitlines() if line.startswith(IN_COMMENT) for word in line.split()]
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs if name.startswith("UNSLOTH_FSDP2") and value}


def number(text: str | None) -> int | None:
    """The whole number in `text`; None where there is none."""
    return int(text) if text and text.isdigit() else None
