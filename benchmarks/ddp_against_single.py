"""Train the same rows on one GPU and on all, through `unsloth-accel launch`; compare losses and step times.

    python -m benchmarks.ddp_against_single --out benchmarks/results/ddp-2gpu.json [--shape 1.5B] [--steps 20]

One GPU takes the global batch in accumulation steps, N GPUs share it, so both see the same rows in each step. Two
data sets: full rows of 2048 tokens (for the times) and rows of 256 to 2048 tokens (for parity where ranks hold
different numbers of tokens). The figures are medians over the steps after the warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import random_checkpoint
from benchmarks.tables import measured_with
from unsloth_accel.hardware.hardware import Hardware

LENGTH = 2048
WARM_UP = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shape", default="1.5B", choices=random_checkpoint.SHAPES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--per-device", type=int, default=8)
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoint, data and runs go")
    options = parser.parse_args()
    hardware = Hardware.detect()
    gpus = len(hardware.devices)
    if gpus < 2:
        print(f"two GPUs are needed; this is {hardware}", file=sys.stderr)
        return 2
    work = Path(options.work)
    model = work / options.shape
    if not (model / "config.json").is_file():
        random_checkpoint.write(options.shape, model)
    report: dict[str, Any] = {
        # Without the directories of the machine it ran on.
        **measured_with(hardware, "ddp_against_single", *(Path(w).name for w in sys.argv[1:])),
        "shape": {"name": options.shape, **random_checkpoint.SHAPES[options.shape]},
        "settings": {"precision": "bf16", "lora_r": 16, "learning_rate": 2e-4, "gradient_checkpointing": "unsloth"},
        "global_batch": options.per_device * gpus,
        "warm_up_steps": WARM_UP,
        "rows": {},
    }
    for rows, shortest in (("full", LENGTH), ("variable", LENGTH // 8)):
        data = work / f"{rows}.jsonl"
        write_rows(data, options.steps * options.per_device * gpus, shortest)
        found = {}
        for strategy, count in (("single", 1), ("ddp", gpus)):
            found[strategy] = run(model, data, work / f"{rows}-{strategy}", strategy, count, options, gpus)
        report["rows"][rows] = compare(found)
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(rows, json.dumps(report["rows"][rows]["comparison"]), flush=True)
    return 0


def write_rows(path: Path, count: int, shortest: int) -> None:
    """`count` rows of random words, `shortest` to LENGTH tokens long (a byte is a token)."""
    chance = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            # One token more than the limit, so that full rows are cut to it and hold no padding.
            size = LENGTH + 1 if shortest == LENGTH else chance.randint(shortest, LENGTH - 1)
            text = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz     ", k=size))
            file.write(json.dumps({"text": text}) + "\n")


def run(
    model: Path, data: Path, directory: Path, strategy: str, count: int, options: argparse.Namespace, gpus: int
) -> dict[str, Any]:
    """One training run; its per-step losses, grad norms, seconds, tokens and peak memory."""
    settings = [
        f"distributed.strategy={strategy}",
        f"distributed.num_processes={count}",
        f"model.name={model}",
        f"data.path={data}",
        f"model.max_seq_length={LENGTH}",
        "model.keep_activations=0",
        f"batch.global_size={options.per_device * gpus}",
        f"training.per_device_train_batch_size={options.per_device}",
        f"training.max_steps={options.steps}",
        "training.learning_rate=2e-4",
        "training.overwrite=true",
        f"output_dir={directory}",
    ]
    description = directory.with_suffix(".yaml")
    description.write_text("logging: {progress: false}\n", encoding="utf-8")
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(description), *settings]
    started = time.perf_counter()
    done = subprocess.run(command)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    steps = [json.loads(line) for line in (directory / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = [0.0, *(step["seconds"] for step in steps)]
    tokens = [0, *(step["num_input_tokens_seen"] for step in steps)]
    seconds = [round(b - a, 4) for a, b in itertools.pairwise(clock)]
    after = range(WARM_UP, len(steps))
    return {
        "command": " ".join(["unsloth-accel", "launch", description.name, *settings]),
        "processes": count,
        "loss": [step["loss"] for step in steps],
        "grad_norm": [step["grad_norm"] for step in steps],
        "seconds": seconds,
        "tokens": [b - a for a, b in itertools.pairwise(tokens)],
        "peak_gib": max(step["peak_gib"] for step in steps),
        "median_step_seconds": round(statistics.median(seconds[i] for i in after), 4),
        "tokens_per_second": round(sum(tokens[i + 1] - tokens[i] for i in after) / sum(seconds[i] for i in after)),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    single, ddp = found["single"], found["ddp"]
    norms = zip(single["grad_norm"], ddp["grad_norm"], strict=True)
    comparison = {
        "same_tokens": single["tokens"] == ddp["tokens"],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(single["loss"], ddp["loss"], strict=True)),
        "largest_grad_norm_difference": max(abs(a - b) / a for a, b in norms),
        "speed_up": round(single["median_step_seconds"] / ddp["median_step_seconds"], 3),
        "tokens_per_second_ratio": round(ddp["tokens_per_second"] / single["tokens_per_second"], 3),
    }
    return {"comparison": comparison, **found}


if __name__ == "__main__":
    sys.exit(main())
