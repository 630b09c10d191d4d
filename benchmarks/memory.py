"""Measure GPU memory and step time of training cells, each a run of `unsloth-accel launch`, and write them as JSON.

    python -m benchmarks.memory --out benchmarks/results/memory-2xH200.json [--cells NAME,NAME] [--seconds 560]

A cell is a model shape, strategy, batch, length, checkpointing and precision. Cells of one GPU run side by side, one
per GPU; each has a process and a GPU of its own, so their memory doesn't mix. `python -m benchmarks.memory_report`
puts the planner's predictions beside the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from benchmarks.random_checkpoint import SHAPES
from benchmarks.tables import measured_with
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.memory_estimate import Checkpointing

STEPS = 7
WARM_UP = 3
CELL_TIMEOUT = 170
"""Seconds."""


@dataclass(frozen=True)
class Cell:
    shape: str
    strategy: str
    per_device: int
    length: int
    checkpointing: Checkpointing = "unsloth"
    load_in_4bit: bool = False
    r: int = 16
    optim: str = "adamw_torch"
    num_processes: int = 2
    kept: int = 0
    """Decoder blocks that keep their activations; with checkpointing `false` all do."""

    @property
    def name(self) -> str:
        kind = f"{self.shape}{'-4bit' if self.load_in_4bit else ''}-{self.strategy}-{self.per_device}x{self.length}"
        extra = [self.checkpointing] * (self.checkpointing != "unsloth") + [f"r{self.r}"] * (self.r != 16)
        return "-".join([kind, *extra, *[self.optim] * (self.optim != "adamw_torch")])


def single(shape: str, per_device: int, length: int, **options: Any) -> Cell:
    return Cell(shape, "single", per_device, length, num_processes=1, **options)


# The constants of unsloth_accel/planning/memory_estimate.py were fitted to these …
CALIBRATION = [
    single("8B", 4, 2048),
    single("8B", 4, 2048, load_in_4bit=True),
    single("1.5B", 8, 2048),
    single("1.5B", 4, 2048, checkpointing="true"),
    single("1.5B", 4, 2048, checkpointing="false"),
    single("1.5B", 2, 8192),
    single("1.5B", 8, 1024, checkpointing="false", load_in_4bit=True),
    single("8B", 1, 4096),
    single("8B", 2, 2048, checkpointing="true", load_in_4bit=True),
    single("3B", 4, 2048, r=64),
    single("3B", 2, 2048, r=64, optim="adamw_8bit"),
    single("0.5B", 8, 2048),
    single("0.5B", 16, 512, checkpointing="false"),
    single("3B", 16, 1024, checkpointing="true"),
    Cell("8B", "ddp", 4, 2048),
    Cell("8B", "fsdp2_native", 4, 2048),
    Cell("8B", "fsdp2", 4, 2048),
    Cell("1.5B", "ddp", 8, 2048),
    Cell("1.5B", "fsdp2_native", 8, 2048),
    Cell("1.5B", "fsdp2", 8, 2048),
    Cell("1.5B", "fsdp1", 8, 2048),
    Cell("8B", "ddp", 4, 2048, load_in_4bit=True),
    Cell("8B", "fsdp2_native", 4, 2048, load_in_4bit=True),
]
# … and not to these, which were measured after the constants were fixed.
HELD_OUT = [
    single("4B", 4, 2048),
    single("3B", 8, 2048),
    single("1.5B", 1, 2048),
    single("8B", 1, 8192, load_in_4bit=True),
    single("0.5B", 4, 4096, checkpointing="true"),
    single("3B", 2, 2048, checkpointing="false", load_in_4bit=True),
    single("1.5B", 16, 1024, load_in_4bit=True),
    single("1.5B", 2, 2048, checkpointing="true", r=128),
    Cell("8B", "fsdp2", 4, 2048, load_in_4bit=True),
    Cell("3B", "fsdp2_native", 4, 2048, r=64),
    Cell("3B", "fsdp2", 16, 1024, checkpointing="true"),
    Cell("4B", "ddp", 2, 4096),
]
CELLS = {cell.name: cell for cell in [*CALIBRATION, *HELD_OUT]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON; cells that it holds already are kept and not run again")
    parser.add_argument("--cells", help="comma-separated names; all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    options = parser.parse_args()
    started = time.perf_counter()
    hardware = Hardware.detect()
    gpus = hardware.devices
    names = options.cells.split(",") if options.cells else list(CELLS)
    if len(gpus) < max(CELLS[name].num_processes for name in names):
        print(f"too few GPUs: {hardware}", file=sys.stderr)
        return 2
    work, out = Path(options.work), Path(options.out)
    report: dict[str, Any] = {
        **measured_with(hardware, "memory", "--out", "memory.json"),
        "gpu_memory_gib": round(gpus[0].memory_gib, 2),
        "shapes": SHAPES,
        "steps": STEPS,
        "warm_up_steps": WARM_UP,
        "cells": {},
    }
    if out.is_file():
        report["cells"] = json.loads(out.read_text(encoding="utf-8"))["cells"]
    wanted = [CELLS[name] for name in names if name not in report["cells"]]
    free: Queue[str] = Queue()
    for device in gpus:
        free.put(device.uuid)

    def record(cell: Cell, figures: dict[str, Any]) -> None:
        report["cells"][cell.name] = figures
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        shown = {key: figures.get(key) for key in ("memory_gib", "median_step_seconds", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)

    def alone(cell: Cell) -> None:
        uuid = free.get()
        try:
            if time.perf_counter() - started < options.seconds:
                record(cell, run(cell, work, {"CUDA_VISIBLE_DEVICES": uuid}))
        finally:
            free.put(uuid)

    def write(shape: str) -> None:
        # In a process of its own, so that this one holds no GPU memory.
        uuid = free.get()
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", shape, str(work / shape)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid})
        print(f"{time.perf_counter() - started:.0f}s wrote {shape}", flush=True)
        free.put(uuid)

    missing = [s for s in dict.fromkeys(cell.shape for cell in wanted) if not (work / s / "config.json").is_file()]
    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(write, missing))
    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(alone, [cell for cell in wanted if cell.num_processes == 1]))
    for cell in wanted:
        if cell.num_processes > 1 and time.perf_counter() - started < options.seconds:
            record(cell, run(cell, work, {}))
    return 0


def run(cell: Cell, work: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Train the cell; its memory in GiB per GPU, step times in seconds, losses; or the error that ended it."""
    data = work / f"rows-{cell.length}.jsonl"
    data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows(cell.length)), encoding="utf-8")
    directory = work / cell.name
    settings = [
        f"distributed.strategy={cell.strategy}",
        f"distributed.num_processes={cell.num_processes}",
        f"model.name={work / cell.shape}",
        f"model.max_seq_length={cell.length}",
        f"model.gradient_checkpointing='{cell.checkpointing}'",
        f"model.keep_activations={cell.kept if cell.checkpointing != 'false' else 'auto'}",
        f"model.load_in_4bit={str(cell.load_in_4bit).lower()}",
        f"lora.r={cell.r}",
        f"data.path={data}",
        f"batch.global_size={cell.per_device * cell.num_processes}",
        f"training.per_device_train_batch_size={cell.per_device}",
        f"training.optim={cell.optim}",
        f"training.max_steps={STEPS}",
        "training.learning_rate=2e-4",
        "training.overwrite=true",
        f"output_dir={directory}",
    ]
    description = work / f"{cell.name}.yaml"
    description.write_text("logging: {progress: false}\n", encoding="utf-8")
    figures: dict[str, Any] = {
        "cell": asdict(cell),
        "command": " ".join(["unsloth-accel", "launch", description.name, *settings]).replace(f"{work}/", ""),
    }
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(description), *settings]
    try:
        done = subprocess.run(
            command, env=os.environ | environment, timeout=CELL_TIMEOUT, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as late:
        (work / f"{cell.name}.log").write_bytes((late.stdout or b"") + (late.stderr or b""))
        return figures | {"error": f"not done after {CELL_TIMEOUT} s"}
    (work / f"{cell.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return figures | {"error": "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])[-1500:]}
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    lines = (directory / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    clock = [0.0, *(step["seconds"] for step in steps)]
    seconds = [round(b - a, 4) for a, b in itertools.pairwise(clock)]
    return figures | {
        "memory_gib": results["memory_gib"],
        "loss": [step["loss"] for step in steps],
        "seconds": seconds,
        "median_step_seconds": round(statistics.median(seconds[WARM_UP:]), 4),
    }


def rows(length: int, count: int = 256) -> list[str]:
    """Texts that fill `length` tokens and one more, so that they are cut and hold no padding."""
    import random

    chance = random.Random(0)
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz     ", k=length + 1)) for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
