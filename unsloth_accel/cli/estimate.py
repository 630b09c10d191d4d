"""unsloth-accel estimate: the GPU memory that a model takes, per strategy and term."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import counted
from .options import add_run, command_parser, count, run_from_words
from .tables import console, show, tables

if TYPE_CHECKING:
    from ..planning.memory_estimate import MemoryEstimate, Workload

EXAMPLES = """\
examples:
  unsloth-accel estimate model.name=unsloth/Llama-3.1-8B-Instruct
  unsloth-accel estimate model.name=unsloth/Qwen3-32B model.load_in_4bit=true --gpus 4 --rows 1
  unsloth-accel estimate examples/configs/quickstart.yaml --json"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "estimate",
        "GiB per GPU for each strategy: weights, adapter, gradients, optimizer, activations, loss, "
        "gathered units, loading, fragmentation, CUDA's context. How good it is: docs/memory.md.",
        EXAMPLES,
        usage="unsloth-accel estimate [RUN.yaml] [key=value ...] [--gpus N] [--rows N] [--json]",
    )
    add_run(made)
    made.add_argument("--gpus", type=count, default=2, metavar="N", help="GPUs that share the model; default 2")
    made.add_argument("--rows", type=count, metavar="N", help="per-device batch in rows; default the run's, or 2")
    made.add_argument("--json", action="store_true")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    from dataclasses import replace

    from ..models.lora_targets import targets
    from ..models.spec import ModelSpec
    from ..planning.memory_estimate import estimate
    from ..planning.planner import workload
    from ..strategies import STRATEGIES

    description = run_from_words(asked.words)
    spec = ModelSpec.load(description.model.name)
    rows = asked.rows or description.training.get("per_device_train_batch_size") or 2
    full = description.model.dtype == "float32"
    work = workload(description, spec, targets(description, spec), rows, full=full)
    found: dict[str, MemoryEstimate] = {}
    for strategy in STRATEGIES:
        gpus = 1 if strategy.one_process else asked.gpus
        if gpus == 1 and not strategy.one_process:
            continue
        found[strategy.name] = estimate(work, strategy.name, gpus)
        if not work.in_4bit and "4bit" not in strategy.cannot:
            found[f"{strategy.name} 4-bit"] = estimate(replace(work, load_in_4bit=True), strategy.name, gpus)
    if asked.json:
        values = {
            "model": spec.name,
            "parameters": spec.num_parameters,
            "trained_parameters": work.lora_parameters,
            "rows": work.per_device,
            "length": work.length,
            "gpus": asked.gpus,
            "memory_gib": {name: memory.to_dict() for name, memory in found.items()},
        }
        print(json.dumps(values, indent=2))
        return 0
    _print(work, found, asked.gpus)
    return 0


def _print(work: Workload, found: dict[str, MemoryEstimate], gpus: int) -> None:
    from rich.text import Text

    spec = work.spec
    title = (
        f"{spec.name}: {spec.num_parameters / 1e9:.2f}B parameters ({spec.source}), "
        f"{work.lora_parameters / 1e6:.1f}M trained, {work.per_device} × {work.length} tokens, "
        f"checkpointing {work.checkpointing}; GiB per GPU, on {counted(gpus, 'GPU')}"
    )
    rows = [["", *found]]
    for term in dict.fromkeys(term for memory in found.values() for term in memory.terms):
        cells = (f"{memory.terms[term]:.2f}" if term in memory.terms else "" for memory in found.values())
        rows.append([term.replace("_", " "), *cells])
    rows.append(["total", *(f"{memory.total:.1f}" for memory in found.values())])
    show(Text(title, style="italic", overflow="fold"), *tables(rows, console().width))
