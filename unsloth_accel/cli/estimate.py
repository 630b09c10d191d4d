"""unsloth-accel estimate: the GPU memory that a model takes, per strategy and term."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import counted, raise_errors
from .options import add_run, command_parser, count, run_from_words
from .tables import console, show, tables

if TYPE_CHECKING:
    from ..planning.memory_estimate import MemoryEstimate, Workload

EXAMPLES = """\
examples:
  unsloth-accel estimate model.name=unsloth/Llama-3.1-8B-Instruct
  unsloth-accel estimate model.name=unsloth/Qwen3-32B model.load_in_4bit=true --gpus 4 --rows 1
  unsloth-accel estimate run.yaml --json"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "estimate",
        "GiB per GPU for each strategy: weights, adapter, gradients, optimizer, activations, loss, "
        "gathered units, loading, fragmentation, CUDA's context.",
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

    from ..models.added_tokens import with_added_tokens
    from ..models.lora_targets import targets
    from ..models.spec import ModelSpec
    from ..planning.kept_blocks import may_keep
    from ..planning.memory_estimate import estimate
    from ..planning.planner import cannot, workload
    from ..strategies import STRATEGIES
    from ..validation.run_checks import setting_problems

    description = run_from_words(asked.words)
    raise_errors(setting_problems(description))
    model = description.model
    spec = with_added_tokens(description, ModelSpec.load(model.name, trust_remote_code=model.trust_remote_code))
    rows = asked.rows or description.training.get("per_device_train_batch_size") or 2
    full = description.model.dtype == "float32"
    work = workload(description, spec, targets(description, spec), rows, full=full)
    kept, _ = may_keep(description, spec.num_layers, asked.gpus, on_cpu=False, reasons=[])
    work = replace(work, keep_activations=kept)
    found: dict[str, MemoryEstimate] = {}
    impossible: dict[str, str] = {}
    for strategy in STRATEGIES:
        gpus = 1 if strategy.one_process else asked.gpus
        if gpus == 1 and not strategy.one_process:
            continue
        for bits in (work,) if work.in_4bit else (work, replace(work, load_in_4bit=True)):
            name = f"{strategy.name} 4-bit" if bits.in_4bit else strategy.name
            why = cannot(in_4bit=bits.in_4bit).get(strategy.name)
            if why is None:
                found[name] = estimate(bits, strategy.name, gpus)
            else:
                impossible[name] = why
    if asked.json:
        values = {
            "model": spec.name,
            "parameters": spec.num_parameters,
            "trained_parameters": work.lora_parameters,
            "rows": work.per_device,
            "length": work.length,
            "gpus": asked.gpus,
            "memory_gib": {name: memory.to_dict() for name, memory in found.items()},
            "impossible": impossible,
        }
        print(json.dumps(values, indent=2))
        return 0
    _print(work, found, impossible, asked.gpus)
    return 0


def _print(work: Workload, found: dict[str, MemoryEstimate], impossible: dict[str, str], gpus: int) -> None:
    from rich.text import Text

    spec = work.spec
    kept = f"{work.kept_blocks} of {spec.num_layers} blocks keep their activations"
    title = (
        f"{spec.name}: {spec.num_parameters / 1e9:.2f}B parameters ({spec.source}), "
        f"{work.lora_parameters / 1e6:.1f}M trained, {work.tokens // work.length} × {work.length} tokens, "
        f"checkpointing {work.checkpointing}, {kept}; GiB per GPU, on {counted(gpus, 'GPU')}"
    )
    rows = [["", *found]]
    for term in dict.fromkeys(term for memory in found.values() for term in memory.terms):
        cells = (f"{memory.terms[term]:.2f}" if term in memory.terms else "" for memory in found.values())
        rows.append([term.replace("_", " "), *cells])
    rows.append(["total", *(f"{memory.total:.1f}" for memory in found.values())])
    notes = []
    for why in dict.fromkeys(impossible.values()):
        names = ", ".join(name for name, reason in impossible.items() if reason == why)
        notes.append(Text(f"not {names}: {why}"))
    show(Text(title, style="italic", overflow="fold"), *tables(rows, console().width), *notes)
