"""Many cells in one loaded process: a model is loaded once, and trained a few steps for each way of spending memory.

Importing Unsloth and loading an 8B model take a GPU machine more than a minute, a cell's own steps five seconds.
What one GPU trains is trained in this process; what several do, in processes that are launched once for a model and a
strategy, and train all its cells in step (benchmarks.loaded_jobs).
`python -m benchmarks.kept` and `python -m benchmarks.regret` measure with it.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import SHAPES
from benchmarks.strategies import write_texts
from unsloth_accel.adapters.out_of_memory import BUFFERS
from unsloth_accel.config.promise import PROMISE
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.config.run_config import RunConfig
from unsloth_accel.planning.memory_estimate import CONTEXT_GIB, NCCL_GIB

GIB = 2**30
LEARNING_RATE = 2e-4
ROWS = 512
"""Rows of each length, of which an epoch is longer than a cell."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A way to train one model, on one GPU or on several."""

    shape: str
    load_in_4bit: bool = False
    per_device: int
    length: int
    kept: int
    """Decoder blocks that keep their activations."""
    accumulation: int = 1
    limit_gib: float | None = None
    """Memory of the card that is stood in for, CUDA's context included; None for the whole GPU."""
    strategy: str = "single"
    processes: int = 1

    @property
    def group(self) -> str:
        """What is loaded once."""
        several = [self.strategy, str(self.processes)] if self.processes > 1 else []
        return "-".join([self.shape, *["4bit"] * self.load_in_4bit, *several])

    @property
    def name(self) -> str:
        rows = f"{self.per_device}x{self.length}" + (f"x{self.accumulation}" if self.accumulation > 1 else "")
        limit = [f"{self.limit_gib:g}GiB"] if self.limit_gib else []
        return "-".join([self.group, rows, f"k{self.kept}", *limit])

    def run(self, work: Path, steps: int, *, on_cpu: bool = False) -> RunConfig:
        """Return the run that trains it for `steps` optimizer steps on full rows."""
        data = work / f"rows-{self.length}.jsonl"
        if not data.is_file():
            # A character is a token; one more than the limit, so that rows are cut to it and hold no padding.
            write_texts(data, [self.length + 1] * ROWS)
        model = {"name": str(work / self.shape), "max_seq_length": self.length, "load_in_4bit": self.load_in_4bit}
        rows = self.per_device * self.accumulation * self.processes
        training = {
            "per_device_train_batch_size": self.per_device,
            "gradient_accumulation_steps": self.accumulation,
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "optim": "adamw_torch_fused",
            "bf16": not on_cpu,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "overwrite": True,
        }
        return from_dict(
            {
                "model": model | {"keep_activations": self.kept},
                "data": {"path": str(data)},
                "batch": {"global_size": rows, "on_out_of_memory": "stop"},
                "distributed": {
                    "strategy": self.strategy,
                    "num_processes": self.processes,
                    "device": "cpu" if on_cpu else "cuda",
                },
                "training": training,
                "logging": {"progress": False, "hang_after": 0},
                "output_dir": str(work / "runs" / self.name),
            }
        )


def write_shapes(shapes: Iterable[str], work: Path) -> None:
    """Write the checkpoints that aren't there, in processes of their own, so that this one holds no GPU memory."""
    commands = [
        [sys.executable, "-m", "benchmarks.random_checkpoint", shape, str(work / shape)]
        for shape in dict.fromkeys(shapes)
        if not (work / shape / "config.json").is_file()
    ]
    writing = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    for command, process in zip(commands, writing, strict=True):
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)


def measured(
    cells: Sequence[Cell], work: Path, *, steps: int, warm_up: int, may_go_on: Callable[[], bool] = lambda: True
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yield each cell with its figures, group by group in the order given, those of one GPU first; none once
    `may_go_on` says no.

    Figures: `seconds` of each step, their median after `warm_up`, GiB allocated (`training`) and held (`reserved`) by
    torch at the peak, `loss` of each step; or the `error` that ended it. Memory is that of the fullest GPU.
    """
    from benchmarks.loaded_jobs import of_several  # which uses this module

    alone = [cell for cell in cells if cell.processes == 1]
    if alone:
        yield from in_this_process(alone, work, steps=steps, warm_up=warm_up, may_go_on=may_go_on)
    several = [cell for cell in cells if cell.processes > 1]
    if several and may_go_on():
        yield from of_several(several, work, steps=steps, warm_up=warm_up, may_go_on=may_go_on)


def in_this_process(
    cells: Iterable[Cell], work: Path, *, steps: int, warm_up: int, may_go_on: Callable[[], bool]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yield as `measured` does what this process trains, alone or as one of those that were launched."""
    import torch

    on_cpu = not torch.cuda.is_available()
    for _, together in itertools.groupby(cells, key=lambda cell: cell.group):
        own = list(together)
        longest = max(own, key=lambda cell: cell.length)  # Unsloth takes no longer rows than it loaded the model for
        model = tokenizer = None
        start: dict[str, Any] = {}
        for cell in own:
            if not may_go_on():
                return
            run = cell.run(work, steps, on_cpu=on_cpu)
            if model is None:
                model, tokenizer = _loaded(longest.run(work, steps, on_cpu=on_cpu))
                start = {
                    name: value.detach().cpu() if value.is_cuda else value.detach().clone()
                    for name, value in _trained_parameters(model)
                }
            _begin_alike(model, start)
            yield cell, {"cell": asdict(cell), **_trained(cell, run, model, tokenizer, warm_up)}
        model = tokenizer = None
        _empty()


def _loaded(run: RunConfig) -> tuple[Any, Any]:
    from unsloth_accel.training.load_model import add_adapter, load_model

    model, tokenizer = load_model(run)
    return add_adapter(model, run), tokenizer


def _trained_parameters(model: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _begin_alike(model: Any, start: dict[str, Any]) -> None:
    """Give the adapter of `model` the weights of `start`, those of rank 0, so that losses of its cells can be
    compared."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        for name, value in _trained_parameters(model):
            begun = start[name]
            if isinstance(value, DTensor):
                begun = distribute_tensor(begun.to(value.device), value.device_mesh, value.placements)
            value.copy_(begun)
            if not isinstance(value, DTensor) and dist.is_available() and dist.is_initialized():
                dist.broadcast(value, src=0)


def _trained(cell: Cell, run: RunConfig, model: Any, tokenizer: Any, warm_up: int) -> dict[str, Any]:
    import torch

    _empty()
    started = time.perf_counter()
    try:
        found = _steps(cell, run, model, tokenizer)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "out of memory" not in str(error).lower():
            raise
        found = {"error": f"out of memory: {str(error).splitlines()[0][:300]}"}
    finally:
        _limit(None)
        for parameter in model.parameters():
            parameter.grad = None
    if "seconds" in found:
        found["median_step_seconds"] = round(statistics.median(found["seconds"][warm_up:]), 4)
    return found | {"wall_seconds": round(time.perf_counter() - started, 1)}


def _steps(cell: Cell, run: RunConfig, model: Any, tokenizer: Any) -> dict[str, Any]:
    from unsloth_accel.adapters import environment
    from unsloth_accel.adapters.kept_activations import keep
    from unsloth_accel.artifacts.run_directory import RunDirectory
    from unsloth_accel.callbacks.peak_memory import PeakMemory
    from unsloth_accel.callbacks.rank_log import RankLog
    from unsloth_accel.methods import METHODS
    from unsloth_accel.training import sft
    from unsloth_accel.training.attach import attach
    from unsloth_accel.training.trainer_config import trainer_config

    method, files = METHODS[run.method], RunDirectory(run.output_dir)
    kept = keep(model, cell.kept)
    config = trainer_config(run, method, sft.config_fields(run))
    trainer = sft.make_trainer(run, model, tokenizer, config, sft.prepare_data(run, tokenizer))
    _promise(cell)
    attach(trainer, run, RankLog(None, environment.rank()), method)
    trainer.add_callback(limiting(cell))
    _leave_sharded(trainer)
    trainer.train()
    wrapped = type(trainer.model_wrapped).__name__
    peak = next(one for one in trainer.callback_handler.callbacks if isinstance(one, PeakMemory))
    lines = [json.loads(line) for line in files.step_log.read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "loss" in line]
    clock = [0.0, *(line["seconds"] for line in logged)]
    told = ("training", "reserved", "shared") if cell.processes > 1 else ("training", "reserved")
    return {
        "kept": kept,
        **({"wrapped": wrapped} if cell.processes > 1 else {}),
        "memory_gib": {name: value for name, value in peak.figures().items() if name in told},
        "seconds": [round(late - early, 4) for early, late in itertools.pairwise(clock)],
        "loss": [line["loss"] for line in logged],
    }


def _leave_sharded(trainer: Any) -> None:
    """Let accelerate prepare a model that an earlier cell's trainer has sharded by FSDP2: it leaves the model as it is,
    but first looks for the classes of its blocks, which sharding has changed."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(trainer.model, FSDPModule) and trainer.accelerator.is_fsdp2:
        trainer.accelerator.state.fsdp_plugin.set_auto_wrap_policy = lambda model: None


def _promise(cell: Cell) -> None:
    """Let launched processes, which were promised their first cell's rows, expect those of `cell`."""
    from unsloth_accel.adapters import environment

    promised = environment.promise() if cell.processes > 1 else None
    if promised is not None:
        rows = cell.per_device * cell.accumulation * cell.processes
        told = replace(promised, rows_per_step=rows, memory_gib=None, keep_activations=None)
        os.environ[PROMISE] = json.dumps(asdict(told))


def limiting(cell: Cell) -> Any:
    """Return a callback that limits the allocator of each rank's GPU as training begins: what is shared among GPUs, and
    no allocator's, is known by then."""
    from transformers import TrainerCallback

    class Limit(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            from unsloth_accel.adapters.fsdp2.peer_fetch.fetch import shared_bytes

            if cell.limit_gib is not None:
                beside = CONTEXT_GIB + (NCCL_GIB if cell.processes > 1 else 0.0) + shared_bytes(model) / GIB
                _limit(cell.limit_gib - beside)

    return Limit()


def _limit(gib: float | None) -> None:
    """Let torch's allocator have so many GiB of this process's GPU; None for all that it has."""
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if gib is None else gib * GIB / total)


def _empty() -> None:
    """Free what earlier cells left on the GPU, Unsloth's buffers too, which grow and stay."""
    import torch

    for module, names in BUFFERS.items():
        for name in names:
            for buffer in getattr(sys.modules.get(module), name, None) or ():
                if buffer is not None:
                    buffer.resize_(0)
                    buffer.untyped_storage().resize_(0)
    gc.collect()
    torch.cuda.empty_cache()


def fitting(cell: Cell, **changes: Any) -> Cell:
    """Return `cell` with `changes`, and no more kept blocks than its model has."""
    changed = replace(cell, **changes)
    return replace(changed, kept=min(changed.kept, SHAPES[changed.shape]["num_hidden_layers"]))
