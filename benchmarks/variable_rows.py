"""Rows of very different lengths on several GPUs: this package against `accelerate launch` with TRL's defaults.

    python -m benchmarks.variable_rows --out benchmarks/results/variable-2xH100.json [--shape 1.5B] [--steps 80]

The same rows in the same order, 8 per GPU and step, 64 to 2048 tokens, skewed as chats are (log-normal, median 270).
Runs alternate; each is started twice by default. Tokens per second are real ones, from the end of the log at step 20 to
the last one, the clock read after the loss was, which waits for the GPU. Parity: each logged loss.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import random_checkpoint
from benchmarks.tables import measured_with
from unsloth_accel.files import write_atomically
from unsloth_accel.hardware.hardware import Hardware

LENGTH = 2048
PER_DEVICE = 8
"""TRL's default."""
EVERY = 10
"""Steps per log, TRL's default."""
WARM_UP = 20
WAYS: dict[str, list[str]] = {
    "tokens": [],
    "rows": ["batch.balance=rows"],
    "tokens, stop when out of memory": ["batch.on_out_of_memory=stop"],
    "transformers' batch_rebalance": ["batch.balance=rows", "training.train_sampling_strategy=batch_rebalance"],
}
"""Ways to run it here, by name, with their overrides."""
ROW_BY_ROW = ", attention row by row"
"""Added to a way's name: as Unsloth does it with torch before 2.12 (adapters/varlen_attention.py)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shape", default="1.5B", choices=random_checkpoint.SHAPES)
    parser.add_argument("--steps", type=int, default=80, help="a multiple of 10")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--ways", nargs="*", default=["tokens", "rows"], choices=[*WAYS, *(way + ROW_BY_ROW for way in WAYS)]
    )
    parser.add_argument("--work", default="runs/variable-rows")
    options = parser.parse_args()
    hardware = Hardware.detect()
    count = max(2, len(hardware.devices))
    work = Path(options.work).resolve()
    model = work / options.shape
    if not (model / "config.json").is_file():
        random_checkpoint.write(options.shape, model)
    data = work / "rows.jsonl"
    lengths = write_rows(data, options.steps * PER_DEVICE * count, random_checkpoint.END)
    # All rows are seen once, in a random order that every way shares; those of the warm-up are a random part of them.
    tokens = sum(lengths) * (options.steps - WARM_UP) // options.steps
    report: dict[str, Any] = {
        **measured_with(hardware, "variable_rows", *(Path(word).name for word in sys.argv[1:])),
        "shape": options.shape,
        "processes": count,
        "rows_per_step": PER_DEVICE * count,
        "tokens_per_row": {
            "mean": round(statistics.mean(lengths)),
            "median": statistics.median(lengths),
            "largest": max(lengths),
            "smallest": min(lengths),
        },
        "warm_up_steps": WARM_UP,
        "runs": [],
    }
    for number in range(options.rounds):
        for way in ["TRL's defaults", *options.ways]:
            found = run(way, model, data, options.steps, count, tokens, work / f"{number}-{way.replace(' ', '-')}")
            report["runs"].append({"way": way, "round": number, **found})
            report["comparison"] = compare(report["runs"])
            write_atomically(options.out, json.dumps(report, indent=1) + "\n")
            print(way, found["tokens_per_second"], json.dumps(report["comparison"].get(way)), flush=True)
    return 0


def write_rows(path: Path, count: int, end: str) -> list[int]:
    """`count` rows of random words, ended by the token `end`; returns their tokens, which are its bytes and that one.

    On GPUs Unsloth's tokenising of plain text adds no such token, and this package's does: losses would differ.
    """
    chance = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = [min(LENGTH - 2, max(64, int(chance.lognormvariate(5.6, 0.9)))) for _ in range(count)]
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            text = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz     ", k=length))
            file.write(json.dumps({"text": text + end}) + "\n")
    return [length + 1 for length in lengths]


def run(way: str, model: Path, data: Path, steps: int, count: int, tokens: int, directory: Path) -> dict[str, Any]:
    """One run's losses, seconds per step over each log, real tokens per second and peak memory; `tokens` are those of
    the steps after the warm-up."""
    gpus = bool(Hardware.detect().devices)
    environment = dict(os.environ)
    if way == "TRL's defaults":
        out = directory.with_suffix(".json")
        # Without GPUs the shipped config: it is for trying this script, and its variable for accelerate's own fault.
        cpu = ["--config_file", "accelerate_configs/cpu_ddp.yaml"]
        kind = ["--multi_gpu", "--mixed_precision", "bf16"] if gpus else cpu
        environment |= {} if gpus else {"ACCELERATE_USE_CPU": "true"}
        launch = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(count)]
        command = [*launch, "benchmarks/plain_unsloth.py", str(model), str(data), str(steps), str(out)]
    else:
        description = directory.with_suffix(".yaml")
        description.write_text("logging: {progress: false}\n", encoding="utf-8")
        settings = [
            f"model.name={model}",
            f"data.path={data}",
            f"model.max_seq_length={LENGTH}",
            "model.keep_activations=0",
            "distributed.strategy=ddp",
        ]
        settings += [f"distributed.num_processes={count}", f"batch.global_size={PER_DEVICE * count}"]
        settings += [f"training.per_device_train_batch_size={PER_DEVICE}", f"training.max_steps={steps}"]
        settings += ["training.learning_rate=2e-4", f"training.logging_steps={EVERY}", "training.overwrite=true"]
        settings += [f"output_dir={directory}", *WAYS[way.removesuffix(ROW_BY_ROW)]]
        environment |= {"UNSLOTH_TORCH_VARLEN": "0"} if way.endswith(ROW_BY_ROW) else {}
        command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(description), *settings]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    if way == "TRL's defaults":
        kept = json.loads(out.read_text(encoding="utf-8"))
        logs = [log for log in kept.pop("logs") if "loss" in log]
        clock = [log["at"] for log in logs]
        del kept["times"]
        kept["compiled_graphs"] = [log["graphs"] for log in logs]
    else:
        text = Path(directory, "logs", "steps.jsonl").read_text(encoding="utf-8")
        logs = [json.loads(line) for line in text.splitlines()]
        clock = [log["seconds"] for log in logs]
        kept = {"peak_gib": logs[-1].get("peak_gib")}
    if len(logs) != steps // EVERY:
        raise SystemExit(f"{way}: {len(logs)} logs in {steps} steps, where one in every {EVERY} was asked for")
    seconds = [(later - earlier) / EVERY for earlier, later in itertools.pairwise(clock)]
    taken = clock[-1] - clock[WARM_UP // EVERY - 1]
    return {
        "loss": [float(log["loss"]) for log in logs],
        "grad_norm": [float(log["grad_norm"]) for log in logs],
        "seconds_per_step": [round(value, 4) for value in seconds],
        "seconds": round(taken, 3),
        "steps": steps - WARM_UP,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "tokens_per_second": round(tokens / taken),
        **kept,
    }


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each way's median tokens per second, against TRL's defaults and against their losses."""
    ways: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        ways.setdefault(one["way"], []).append(one)
    plain = ways["TRL's defaults"]
    found = {}
    for way, own in ways.items():
        speed = statistics.median(one["tokens_per_second"] for one in own)
        losses = zip(own[0]["loss"], plain[0]["loss"], strict=True)
        norms = zip(own[0]["grad_norm"], plain[0]["grad_norm"], strict=True)
        found[way] = {
            "tokens_per_second": speed,
            "ratio": round(speed / statistics.median(one["tokens_per_second"] for one in plain), 3),
            "largest_loss_difference": round(max(abs(a - b) for a, b in losses), 5),
            "largest_grad_norm_difference": round(max(abs(a - b) / b for a, b in norms), 5),
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
