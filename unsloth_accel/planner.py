"""Plan: strategy, processes, batch and memory for a run on given hardware, with the reason for each choice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from . import plan_view
from .accelerate_config import AccelerateConfig, Precision, Strategy
from .adapters.environment import variables_for
from .batch import DEFAULT_PER_DEVICE, Batch, check_divisible, divide_batch, divisors
from .choice import Option, Question, Rejected, choose
from .files import write_atomically
from .hardware import Hardware
from .memory import MemoryEstimate, Workload
from .model_spec import ModelSpec
from .problems import ConfigError, Problem
from .promise import Promise
from .run_config import PROJECTIONS, RunConfig
from .speed import Speed

DECISIVE = ("taken as", "link ", "network ", "MIG")
"""Words of those findings about hardware that a plan depends on; the others are in `Hardware.reasons`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    strategy: Strategy
    device: Literal["cuda", "cpu"]
    mixed_precision: Precision
    batch: Batch
    reasons: tuple[str, ...]
    hardware: Hardware
    run: RunConfig
    rejected: tuple[Rejected, ...] = ()
    """The other strategies, each with the reason."""
    memory: MemoryEstimate | None = None
    """Per GPU (on a CPU: per process, of the machine's memory); None where the model's shapes are unknown."""
    speed: Speed | None = None
    """Estimated; None on a CPU and for unknown cards."""
    spec: ModelSpec | None = None

    @property
    def num_processes(self) -> int:
        return self.batch.num_processes

    @property
    def num_machines(self) -> int:
        return self.hardware.num_machines if self.device == "cuda" and self.num_processes > 1 else 1

    @property
    def promise(self) -> Promise:
        return Promise(num_processes=self.num_processes, strategy=self.strategy, device=self.device)

    @property
    def accelerate_config(self) -> AccelerateConfig:
        decoder_layer = (self.spec and self.spec.decoder_layer_class) or AccelerateConfig.decoder_layers[0]
        return AccelerateConfig(
            strategy=self.strategy,
            num_processes=self.num_processes,
            device=self.device,
            mixed_precision=self.mixed_precision,
            num_machines=self.num_machines,
            load_in_4bit=self.run.model.load_in_4bit or bool(self.spec and self.spec.quantization),
            decoder_layers=(decoder_layer,),
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
        values["batch"] = {"global_size": self.batch.global_size}
        if not self.run.data.path:  # planned from overrides alone
            del values["data"]["path"]
        if not self.run.output_dir:
            del values["output_dir"]
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

    def to_dict(self) -> dict[str, Any]:
        """Everything decided, as JSON can hold it: what `unsloth-accel plan --json` prints."""
        return plan_view.as_dict(self)

    def __str__(self) -> str:
        return plan_view.as_text(self)

    def __rich__(self) -> Any:
        return plan_view.as_table(self)

    def _repr_html_(self) -> str:
        return plan_view.as_html(self)


def plan(run: RunConfig, hardware: Hardware, spec: ModelSpec | None = None) -> Plan:
    """Decide how `run` runs on `hardware`; `spec` is read from `run.model.name` when it is not given.

    Raises `ConfigError` where what is asked for can't be had: more processes than GPUs, a global batch that can't be
    divided, a model that does not fit, or one whose size is unknown while the strategy depends on it.
    """
    reasons: list[str] = []
    device = _device(run, hardware, reasons)
    if device == "cuda":
        reasons += [reason for reason in hardware.reasons if any(word in reason for word in DECISIVE)]
    count = _num_processes(run, hardware, device, reasons)
    _check_strategy(run, count, device)
    precision = _precision(run, hardware, device, reasons)
    rows = run.batch.rows(run.model.max_seq_length)
    per_device: int | None = run.training.get("per_device_train_batch_size")
    accumulation: int | None = run.training.get("gradient_accumulation_steps")
    if rows is not None:
        check_divisible(rows, count, per_device, accumulation)
    chosen: Option | None = None
    rejected: tuple[Rejected, ...] = ()
    spec = spec or _spec(run, device, count, reasons)
    if spec is not None:
        question = _question(run, spec, hardware, device, precision, count, rows)
        if device == "cuda":
            chosen, why, rejected = choose(question, run.distributed.strategy)
            reasons += why
        else:
            chosen = question.option("ddp" if count > 1 else "single")
    strategy = chosen.strategy if chosen else _unsized_strategy(run, count)
    if device == "cpu" or chosen is None:
        reasons.append(_plain_reason(strategy))
    batch = _batch(rows, count, per_device, accumulation, chosen, device, reasons)
    return Plan(
        strategy=strategy,
        device=device,
        mixed_precision=precision,
        batch=batch,
        reasons=tuple(reasons),
        rejected=rejected,
        memory=chosen.memory if chosen else None,
        speed=chosen.speed if chosen and device == "cuda" else None,
        spec=spec,
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
    gpus = len(hardware.devices) * hardware.num_machines
    if asked == "auto" and run.distributed.strategy == "single":
        return 1
    if asked == "auto" and device == "cuda":
        where = f" on each of {hardware.num_machines} machines" if hardware.num_machines > 1 else ""
        reasons.append(f"{gpus} processes: one per visible GPU{where}.")
        return gpus
    if asked == "auto":
        count = min(2, hardware.cpu_cores)
        reasons.append(f"{count} processes: on a CPU more would only divide its cores; two take the multi-GPU path.")
        return count
    if device == "cuda" and asked < gpus and hardware.num_machines > 1:
        consequence = f"{hardware.num_machines} machines have {gpus} GPUs, and accelerate starts as many on each."
        key = "distributed.num_processes"
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix=f"{key}={gpus}, or auto"))
    if device == "cuda" and asked > gpus:
        key = "distributed.num_processes"
        consequence = f"{asked} processes need {asked} GPUs and {gpus} are visible ({hardware.reason})."
        fix = f"{key}={gpus}, or auto"
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix=fix))
    return int(asked)


def _check_strategy(run: RunConfig, count: int, device: str) -> None:
    asked = run.distributed.strategy
    key = "distributed.strategy"
    if asked == "single" and count > 1:
        consequence = f"single is one process and distributed.num_processes is {count}."
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix="distributed.strategy=ddp"))
    if asked not in ("auto", "single") and count == 1:
        consequence = f"{asked} needs at least two processes and there is one."
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix="distributed.strategy=auto"))
    if asked in ("fsdp2", "fsdp1") and device == "cpu":
        consequence = "accelerate has no FSDP on a CPU: each process would train alone."
        raise ConfigError(Problem(key=key, value=asked, consequence=consequence, fix="distributed.strategy=ddp"))


def _unsized_strategy(run: RunConfig, count: int) -> Strategy:
    """The strategy where nothing is known about the model's size."""
    asked = run.distributed.strategy
    if asked != "auto":
        return asked  # type: ignore[return-value]
    return "ddp" if count > 1 else "single"


def _plain_reason(strategy: Strategy) -> str:
    if strategy == "single":
        return "single: there is one process."
    if strategy == "ddp":
        return "ddp: every process holds the model and synchronises only the adapter's gradients."
    return f"{strategy}: distributed.strategy asks for it."


def _spec(run: RunConfig, device: str, count: int, reasons: list[str]) -> ModelSpec | None:
    """The model's shapes; None, with the reason, where they are unknown and no decision needs them."""
    try:
        spec = ModelSpec.load(run.model.name)
    except ConfigError as error:
        if device == "cuda" and run.distributed.strategy == "auto" and count > 1:
            fix = "or name the strategy: distributed.strategy=ddp while the model fits one GPU"
            problems = [replace(problem, fix=f"{problem.fix}, {fix}") for problem in error.problems]
            raise ConfigError(problems) from None
        first = error.problems[0]
        reasons.append(f"memory is not estimated: {first.key}: {first.consequence}")
        return None
    reasons += [f"{problem.key}: {problem.consequence}" for problem in spec.problems]
    return spec


def _question(
    run: RunConfig,
    spec: ModelSpec,
    hardware: Hardware,
    device: str,
    precision: Precision,
    count: int,
    rows: int | None,
) -> Question:
    per_device: int | None = run.training.get("per_device_train_batch_size")
    accumulation: int | None = run.training.get("gradient_accumulation_steps")
    own = rows // count if rows is not None else None
    if per_device is not None:
        sizes = [per_device]
    elif own is None:
        sizes = list(range(1, DEFAULT_PER_DEVICE + 1))
    elif accumulation is not None:
        sizes = [own // accumulation]
    else:
        sizes = divisors(own)
    if device == "cpu":
        sizes = [size for size in sizes if size <= DEFAULT_PER_DEVICE] or sizes[:1]
        capacity = hardware.host_memory_gib / count
    else:
        capacity = min(d.memory_gib if d.memory_free_gib is None else d.memory_free_gib for d in hardware.devices)
    full = run.model.dtype == "float32" or (device == "cpu" and precision == "no")
    work = Workload(
        spec=spec,
        lora_parameters=trained_parameters(run, spec),
        per_device=sizes[0],
        length=run.model.max_seq_length,
        checkpointing=run.model.gradient_checkpointing,  # type: ignore[arg-type]
        load_in_4bit=run.model.load_in_4bit,
        dtype_bytes=4 if full else 2,
        optim=str(run.training.get("optim", "adamw_torch")),
        on_cpu=device == "cpu",
    )
    return Question(
        work=work,
        hardware=hardware,
        capacity_gib=capacity,
        num_processes=count,
        precision=precision,
        sizes=sizes,
        rows=own if own is not None else sizes[-1] * (accumulation or 1),
    )


def trained_parameters(run: RunConfig, spec: ModelSpec) -> int:
    """Parameters of the adapter that `run` trains."""
    modules = run.lora.target_modules
    if modules == "all-linear":
        # What Unsloth targets then: the seven projections, as far as the architecture has them by these names.
        present = {weight.name.rsplit(".", 1)[-1] for weight in spec.linear_weights}
        modules = [name for name in PROJECTIONS if name in present] or "all-linear"
    return spec.lora_parameters(modules if isinstance(modules, str) else list(modules), run.lora.r)


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


def _batch(
    rows: int | None,
    count: int,
    per_device: int | None,
    accumulation: int | None,
    chosen: Option | None,
    device: str,
    reasons: list[str],
) -> Batch:
    most = chosen.per_device if chosen and device == "cuda" else DEFAULT_PER_DEVICE
    if rows is None:
        given = per_device or min(most, DEFAULT_PER_DEVICE)
        rows = given * (accumulation or 1) * count
        if per_device is None:
            reasons.append(f"{given} rows per device: batch.global_size says nothing, so up to {DEFAULT_PER_DEVICE}.")
        return divide_batch(rows, count, given, accumulation or 1)
    batch = divide_batch(rows, count, per_device, accumulation, most=most)
    if per_device is None and accumulation is None:
        limit = "memory allows" if chosen and device == "cuda" else f"is at most {DEFAULT_PER_DEVICE}"
        share = f"divides the {rows // count} rows of a process"
        reasons.append(f"{batch.per_device} rows per device: the largest number that {limit} and {share}.")
    return batch
