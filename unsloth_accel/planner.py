"""Plan: strategy, processes and batch for a run on given hardware, with the reason for each choice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .accelerate_config import AccelerateConfig, Precision, Strategy
from .adapters.environment import variables_for
from .files import write_atomically
from .hardware import Hardware
from .problems import ConfigError, Problem
from .promise import Promise
from .run_config import RunConfig

DEFAULT_PER_DEVICE = 8
"""Rows: the most that the planner gives one process at once when nothing is said; a memory estimate will replace it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """global_size = per_device × accumulation × num_processes, exactly."""

    global_size: int
    per_device: int
    accumulation: int
    num_processes: int

    def __str__(self) -> str:
        parts = f"{self.per_device} × {self.accumulation} × {self.num_processes}"
        return f"{self.global_size} rows per step = {parts} (per device × accumulation × processes)"


@dataclass(frozen=True, kw_only=True)
class Plan:
    strategy: Strategy
    device: Literal["cuda", "cpu"]
    mixed_precision: Precision
    batch: Batch
    reasons: tuple[str, ...]
    hardware: Hardware
    run: RunConfig
    decoder_layers: tuple[str, ...] = ("LlamaDecoderLayer",)

    @property
    def num_processes(self) -> int:
        return self.batch.num_processes

    @property
    def promise(self) -> Promise:
        return Promise(num_processes=self.num_processes, strategy=self.strategy, device=self.device)

    @property
    def accelerate_config(self) -> AccelerateConfig:
        return AccelerateConfig(
            strategy=self.strategy,
            num_processes=self.num_processes,
            device=self.device,
            mixed_precision=self.mixed_precision,
            decoder_layers=self.decoder_layers,
            load_in_4bit=self.run.model.load_in_4bit,
        )

    @property
    def environment(self) -> dict[str, str]:
        """Variables that `accelerate launch` gets beside its YAML."""
        variables = variables_for(self.promise, gpus=bool(self.hardware.devices)) | self.accelerate_config.environment
        # Tokenizers' own threads deadlock or warn once the data loader forks.
        variables["TOKENIZERS_PARALLELISM"] = "false"
        if self.device == "cpu":
            # Accelerate counts physical cores, which a container may report as too few.
            variables["OMP_NUM_THREADS"] = str(max(1, self.hardware.cpu_cores // self.num_processes))
        elif self.num_processes < len(self.hardware.devices) or self.hardware.devices[0].mig:
            # One process that sees several GPUs would be given torch's DataParallel by the Trainer; of several MIG
            # instances, newer drivers show it all.
            chosen = self.hardware.devices[: self.num_processes]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(device.uuid or str(device.index) for device in chosen)
        return variables

    def resolved(self) -> dict[str, Any]:
        """The run with every `auto` replaced by what was decided, as nested keys and values."""
        values = asdict(self.run)
        values["batch"]["global_size"] = self.batch.global_size
        values["distributed"] |= {
            "strategy": self.strategy,
            "num_processes": self.num_processes,
            "device": self.device,
        }
        # Going on from an earlier run or deleting it is a word to one launch, not part of the description.
        for word in ("resume", "overwrite"):
            values["training"].pop(word, None)
        values["training"] |= {
            "per_device_train_batch_size": self.batch.per_device,
            "gradient_accumulation_steps": self.batch.accumulation,
            "bf16": self.mixed_precision == "bf16",
            "fp16": self.mixed_precision == "fp16",
        }
        return values

    def write(self, directory: str | Path) -> None:
        """Write run.yaml (every `auto` decided) and accelerate.yaml into `directory`."""
        from omegaconf import OmegaConf

        write_atomically(Path(directory, "run.yaml"), OmegaConf.to_yaml(OmegaConf.create(self.resolved())))
        self.accelerate_config.write(Path(directory, "accelerate.yaml"), "Written by unsloth-accel from run.yaml.")

    def __str__(self) -> str:
        lines = [
            ("hardware", str(self.hardware)),
            ("strategy", self.strategy),
            ("processes", f"{self.num_processes} on {'the CPU' if self.device == 'cpu' else 'GPUs'}"),
            ("precision", self.mixed_precision),
            ("batch", str(self.batch)),
            *(("because", reason) for reason in self.reasons),
        ]
        return "\n".join(f"  {name:<10} {text}" for name, text in lines)


def plan(run: RunConfig, hardware: Hardware) -> Plan:
    """Decide how `run` runs on `hardware`; raises `ConfigError` where what is asked for can't be had."""
    reasons: list[str] = []
    device = _device(run, hardware, reasons)
    count = _num_processes(run, hardware, device, reasons)
    strategy = _strategy(run, count, reasons)
    return Plan(
        strategy=strategy,
        device=device,
        mixed_precision=_precision(run, hardware, device, reasons),
        batch=_batch(run, count, reasons),
        reasons=tuple(reasons),
        hardware=hardware,
        run=run,
    )


def _device(run: RunConfig, hardware: Hardware, reasons: list[str]) -> Literal["cuda", "cpu"]:
    asked = run.distributed.device
    if asked == "cuda" and not hardware.devices:
        consequence = f"no GPU is visible: {hardware.reason}."
        fix = "distributed.device=cpu, or make a GPU visible"
        raise ConfigError(Problem(key="distributed.device", value=asked, consequence=consequence, fix=fix))
    if asked == "cpu" or not hardware.devices:
        why = "distributed.device is cpu" if asked == "cpu" else f"no GPU is visible ({hardware.reason})"
        reasons.append(f"device cpu: {why}.")
        return "cpu"
    return "cuda"


def _num_processes(run: RunConfig, hardware: Hardware, device: str, reasons: list[str]) -> int:
    asked = run.distributed.num_processes
    gpus = len(hardware.devices)
    if asked == "auto" and run.distributed.strategy == "single":
        return 1
    if asked == "auto" and device == "cuda":
        reasons.append(f"{gpus} processes: one per visible GPU.")
        return gpus
    if asked == "auto":
        count = min(2, hardware.cpu_cores)
        reasons.append(f"{count} processes: on a CPU more would only divide its cores; two take the multi-GPU path.")
        return count
    if device == "cuda" and asked > gpus:
        key = "distributed.num_processes"
        consequence = f"{asked} processes need {asked} GPUs and {gpus} are visible ({hardware.reason})."
        fix = f"{key}={gpus}, or auto"
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix=fix))
    return int(asked)


def _strategy(run: RunConfig, count: int, reasons: list[str]) -> Strategy:
    asked = run.distributed.strategy
    key = "distributed.strategy"
    if asked == "single" and count > 1:
        consequence = f"single is one process and distributed.num_processes is {count}."
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix="distributed.strategy=ddp"))
    if asked not in ("auto", "single") and count == 1:
        consequence = f"{asked} needs at least two processes and there is one."
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix="distributed.strategy=auto"))
    if count == 1:
        reasons.append("single: there is one process.")
        return "single"
    if asked not in ("auto", "ddp"):
        reasons.append(f"{asked}: distributed.strategy asks for it.")
        return asked  # type: ignore[return-value]
    reasons.append("ddp: every process holds the model and synchronises only the adapter's gradients.")
    return "ddp"


def _precision(run: RunConfig, hardware: Hardware, device: str, reasons: list[str]) -> Precision:
    fields = run.training
    if fields.get("bf16") and fields.get("fp16"):
        consequence = "bf16 and fp16 are both on."
        raise ConfigError(Problem(key="training.bf16", value=True, consequence=consequence, fix="turn one of them off"))
    if fields.get("bf16") or fields.get("fp16"):
        asked: Precision = "bf16" if fields.get("bf16") else "fp16"
        if asked == "fp16" and device == "cpu":
            fix = "drop training.fp16 (the plan takes bf16 where the CPU has it)"
            consequence = "a CPU trains in bf16 or fp32; accelerate refuses fp16 there."
            raise ConfigError(Problem(key="training.fp16", value=True, consequence=consequence, fix=fix))
        reasons.append(f"precision {asked}: training.{asked} is set.")
        return asked
    # An explicit `bf16: false` means full precision; null or nothing leaves the choice to the plan.
    if fields.get("bf16") is False or run.model.dtype == "float32":
        reasons.append("precision no: training.bf16 is false or model.dtype is float32.")
        return "no"
    if device == "cpu":
        reasons.append(f"precision: the CPU {'has' if hardware.cpu_bf16 else 'lacks'} bfloat16 instructions.")
        return "bf16" if hardware.cpu_bf16 else "no"
    old = [d.name for d in hardware.devices if d.compute_capability < (8, 0)]
    if old:
        reasons.append(f"precision fp16: {old[0]} has no bfloat16 (compute capability below 8.0).")
        return "fp16"
    reasons.append("precision bf16: every GPU has bfloat16, which needs no loss scaling.")
    return "bf16"


def _batch(run: RunConfig, count: int, reasons: list[str]) -> Batch:
    per_device = run.training.get("per_device_train_batch_size")
    accumulation = run.training.get("gradient_accumulation_steps")
    global_size = run.batch.global_size
    if global_size is None:
        per_device, accumulation = per_device or DEFAULT_PER_DEVICE, accumulation or 1
        global_size = per_device * accumulation * count
    batch = divide_batch(global_size, count, per_device, accumulation)
    if per_device is None:
        reasons.append(
            f"{batch.per_device} rows per device: the largest number up to {DEFAULT_PER_DEVICE} that divides the "
            f"{batch.global_size // count} of a process; memory is not estimated yet."
        )
    return batch


def divide_batch(global_size: int, count: int, per_device: int | None = None, accumulation: int | None = None) -> Batch:
    """Split `global_size` rows exactly over `count` processes; per device as many rows as allowed.

    Raises `ConfigError` when that is impossible, with the nearest global sizes that work.
    """
    unit = count * (per_device or 1) * (accumulation or 1)
    exact = per_device is not None and accumulation is not None
    if global_size % unit or (exact and global_size != unit):
        product = " × ".join(
            f"{number} {what}"
            for number, what in ((per_device, "rows per device"), (accumulation, "accumulation"), (count, "processes"))
            if number is not None
        )
        below = global_size // unit * unit
        works = [unit] if exact else [size for size in (below, below + unit) if size > 0]
        problem = Problem(
            key="batch.global_size",
            value=global_size,
            consequence=f"can't be {product}{'' if exact else ' times a whole number'}, so it could not be kept.",
            fix=" or ".join(f"batch.global_size={size}" for size in works),
        )
        raise ConfigError(problem)
    rows = global_size // count
    if per_device is None and accumulation is not None:
        per_device = rows // accumulation
    elif per_device is None:
        per_device = max(size for size in range(1, min(rows, DEFAULT_PER_DEVICE) + 1) if rows % size == 0)
    return Batch(global_size=global_size, per_device=per_device, accumulation=rows // per_device, num_processes=count)
