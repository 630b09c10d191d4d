"""Plan: what was decided for a run on given hardware, and the files that say so to the processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..artifacts.own_files import taken
from ..artifacts.run_directory import ACCELERATE_YAML, MARK, PLANNED_YAML, RunDirectory
from ..config.accelerate_config import AccelerateConfig, Precision, launch_lines
from ..config.promise import Promise, variables_for
from ..config.run_config import RunConfig
from ..config.start_adapter import Adapter
from ..config.written import as_yaml, described
from ..data.length_estimate import RowLengths
from ..errors import ConfigError, Problem, raise_errors
from ..files import write_atomically
from ..hardware.device import Device
from ..hardware.hardware import Hardware
from ..methods import METHODS, USUAL_METHOD, Method
from ..models.spec import ModelSpec
from . import plan_view
from .batch import Batch
from .memory_estimate import MemoryEstimate
from .options import free_gib
from .run_time import RunTime
from .speed_estimate import Speed
from .strategy_choice import Rejected

HEADER = f"""# Planned for this machine, {MARK} with {ACCELERATE_YAML}. Every launch writes both anew:
# keep a description of your own in a file of another name.
"""
"""First lines of run.planned.yaml."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    strategy: str
    num_processes: int
    """Number of processes over all machines."""
    device: Literal["cuda", "cpu"]
    mixed_precision: Precision
    batch: Batch
    reasons: tuple[str, ...]
    hardware: Hardware
    run: RunConfig
    devices: tuple[Device, ...] = ()
    """GPUs of one machine that are used, those with the most free memory; none on a CPU."""
    rejected: tuple[Rejected, ...] = ()
    """The other strategies, each with the reason."""
    memory: MemoryEstimate | None = None
    """Memory per GPU (on a CPU: per process, of the machine's memory); None where the model's shapes are unknown."""
    keep_activations: int | None = None
    """Decoder blocks that keep their activations, of those that would be checkpointed; None where that is left to
    Unsloth."""
    speed: Speed | None = None
    """Estimated speed; None on a CPU and for unknown cards."""
    lengths: RowLengths | None = None
    """Lengths of the rows, for which `speed` is estimated; None where they are unknown and count as full."""
    time: RunTime | None = None
    """Steps, hours and cost of the whole run; None where the steps are unknown."""
    checkpoint_gib: float | None = None
    """Size of a checkpoint: the adapter in float32 and its optimizer; None where the model's shapes are unknown."""
    spec: ModelSpec | None = None
    adapter: Adapter | None = None
    """Adapter that training goes on from."""

    @property
    def method(self) -> Method:
        return METHODS[self.run.method]

    @property
    def idle_gib(self) -> float | None:
        """GiB of the fullest GPU that stay free; None on a CPU, and where the model's shapes are unknown."""
        return min(map(free_gib, self.devices)) - self.memory.total if self.memory and self.devices else None

    @property
    def num_machines(self) -> int:
        return self.hardware.num_machines if self.device == "cuda" and self.num_processes > 1 else 1

    @property
    def promise(self) -> Promise:
        return Promise(
            num_processes=self.num_processes,
            strategy=self.strategy,
            device=self.device,
            rows_per_step=self.batch.global_size,
            memory_gib=round(self.memory.training, 2) if self.memory and self.device == "cuda" else None,
            keep_activations=self.keep_activations,
        )

    @property
    def accelerate_config(self) -> AccelerateConfig:
        # Where it is unknown, nothing that needs it is planned.
        decoder_layer = (self.spec and self.spec.decoder_layer_class) or AccelerateConfig.decoder_layers[0]
        return AccelerateConfig(
            strategy=self.strategy,
            num_processes=self.num_processes,
            device=self.device,
            mixed_precision=self.mixed_precision,
            num_machines=self.num_machines,
            # Sharded loading is for 16-bit checkpoints; of another it loads the whole on every GPU.
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
        elif len(self.devices) < len(self.hardware.devices) or self.devices[0].mig:
            # One process that sees several GPUs would be given torch's DataParallel by the Trainer; of several MIG
            # instances, newer drivers show it all.
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(device.uuid or str(device.index) for device in self.devices)
        return variables

    def resolved(self) -> dict[str, Any]:
        """The run with every `auto` replaced by what was decided, as nested keys and values."""
        values = described(self.run)
        if self.run.method == USUAL_METHOD:
            del values["method"]
        values["batch"] |= {"global_size": self.batch.global_size}
        del values["batch"]["global_tokens"]  # the same, said twice
        if not self.run.data.path:  # planned from overrides alone, or of a mix
            del values["data"]["path"]
        if not self.run.output_dir:
            del values["output_dir"]
        if self.keep_activations is not None:
            values["model"] |= {"keep_activations": self.keep_activations}
        values["distributed"] |= {
            "strategy": self.strategy,
            "num_processes": self.num_processes,
            "device": self.device,
        }
        # Going on from an earlier run or deleting it is a word to one launch, not part of the description.
        values["training"].pop("resume", None)
        values["training"].pop("overwrite", None)
        values["training"] |= {
            "per_device_train_batch_size": self.batch.per_device,
            "gradient_accumulation_steps": self.batch.accumulation,
            "bf16": self.mixed_precision == "bf16",
            "fp16": self.mixed_precision == "fp16",
        }
        return values

    def write(self, directory: str | Path) -> None:
        """Write run.planned.yaml (every `auto` decided), accelerate.yaml, with its launch line, and plan.json into
        `directory`.

        Raises `ConfigError` where that can't be written, or a user's own stands there.
        """
        files, config = RunDirectory(directory), self.accelerate_config
        raise_errors(taken(directory, only=(files.planned_yaml, files.accelerate_yaml, files.plan)))
        comment = (
            f"{self.strategy}, {MARK} with {PLANNED_YAML}. Launch both here, or your own script in the\n"
            "place of what follows -m:\n\n"
            + launch_lines(config, ACCELERATE_YAML, f"-m {self.method.module} {PLANNED_YAML}")
        )
        try:
            write_atomically(files.planned_yaml, HEADER + as_yaml(self.resolved(), self.run))
            config.write(files.accelerate_yaml, comment, self.promise)
            write_atomically(files.plan, json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            fix = "choose a directory that you may write"
            consequence = f"can't be written: {error.strerror}."
            raise ConfigError(Problem(key=str(directory), consequence=consequence, fix=fix)) from None

    def to_dict(self) -> dict[str, Any]:
        """Everything decided, as JSON can hold it: what `unsloth-accel plan --json` prints."""
        return plan_view.as_dict(self)

    def __str__(self) -> str:
        return plan_view.as_text(self)

    def __rich__(self) -> Any:
        return plan_view.as_table(self)

    def _repr_html_(self) -> str:
        return plan_view.as_html(self)
