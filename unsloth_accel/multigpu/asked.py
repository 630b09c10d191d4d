"""MultiGPUConfig: what enable_multi_gpu was asked for, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Problem, nearest
from ..strategies import STRATEGIES

BACKENDS = ("nccl", "gloo", "mpi", "ucc")
"""Backends of torch.distributed that average gradients."""
ELSEWHERE = {
    "device_ids": "CUDA_VISIBLE_DEVICES=0,1 in front of the launch",
    "enable_mixed_precision": "bf16=True or fp16=True in the Trainer's config",
    "learning_rate": "learning_rate in the Trainer's config",
    "num_train_epochs": "num_train_epochs in the Trainer's config",
    "max_steps": "max_steps in the Trainer's config",
    "weight_decay": "weight_decay in the Trainer's config",
    "warmup_steps": "warmup_steps in the Trainer's config",
    "save_steps": "save_steps in the Trainer's config",
    "eval_steps": "eval_steps in the Trainer's config",
    "memory_optimization": "enable_memory_optimization",
    "ddp_timeout_minutes": "ddp_timeout in the Trainer's config, in seconds",
    "enable_wandb": 'report_to="wandb" in the Trainer\'s config',
    "log_dir": "output_dir in the Trainer's config: the logs lie there",
    "num_workers": "dataloader_num_workers in the Trainer's config",
    "pin_memory": "dataloader_pin_memory in the Trainer's config",
    "enable_tf32": "tf32 in the Trainer's config",
    "enable_fault_tolerance": "trainer.train(resume_from_checkpoint=True)",
    "gradient_aggregation": "MultiGPUTrainer(…, aggregation_method=AggregationMethod.MEAN)",
}
"""Settings of the older package's config that another place decides here."""


@dataclass(frozen=True, kw_only=True)
class MultiGPUConfig:
    """The arguments of `enable_multi_gpu`, which says what each does."""

    num_gpus: int | None = None
    batch_size_per_gpu: int | None = None
    gradient_accumulation_steps: int | None = None
    ddp_backend: str | None = None
    enable_memory_optimization: bool = True
    enable_gradient_checkpointing: bool | None = None
    find_unused_parameters: bool | None = None
    strategy: str | None = None
    debug: bool = False
    launch: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments by name, which `enable_multi_gpu(**…)` takes again."""
        return dataclasses.asdict(self)


FIELDS = tuple(field.name for field in dataclasses.fields(MultiGPUConfig))


def unknown(names: Iterable[str], *, file: str = "") -> list[Problem]:
    """Return a problem for each of `names` that is no argument of enable_multi_gpu, with what decides it here."""
    return [
        Problem(
            key=str(name),
            consequence="is no argument of enable_multi_gpu, and would do nothing.",
            fix=ELSEWHERE.get(name) or nearest(str(name), FIELDS),
            file=file,
        )
        for name in names
        if name not in FIELDS
    ]


def value_problems(values: Mapping[str, Any], *, file: str = "") -> list[Problem]:
    """Return what is wrong with each value by itself; names that are unknown are left to `unknown`."""
    is_ = ": " if file else "="
    kinds: dict[str, tuple[Callable[[Any], bool], str, str]] = {
        **dict.fromkeys(
            ("num_gpus", "batch_size_per_gpu", "gradient_accumulation_steps"),
            (_is_count, "is no whole number from 1.", "{is_}2, or leave it out"),
        ),
        **dict.fromkeys(
            ("enable_memory_optimization", "debug", "launch"), (_is_bool, "is not a bool.", "{is_}True, or False")
        ),
        **dict.fromkeys(
            ("enable_gradient_checkpointing", "find_unused_parameters"),
            (lambda value: value is None or _is_bool(value), "is not a bool.", "{is_}True, False, or leave it out"),
        ),
        "ddp_backend": (
            lambda value: value is None or value in BACKENDS,
            "is no backend of torch.distributed that averages gradients.",
            "leave it out: nccl on GPUs, gloo on a CPU",
        ),
        "strategy": (
            lambda value: value is None or value in STRATEGIES.names,
            "is no strategy.",
            nearest(str(values.get("strategy")), STRATEGIES.names),
        ),
    }
    return [
        Problem(key=name, value=values[name], consequence=consequence, fix=fix.format(is_=f"{name}{is_}"), file=file)
        for name, (fits, consequence, fix) in kinds.items()
        if name in values and not fits(values[name])
    ]


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)
