"""Every strategy against one GPU, in 16 and 4 bit, for two model sizes: is it the same run, how fast, how much memory?

    python -m benchmarks.strategies [--out FILE.json] [--cells '8B-16bit-*'] [--seconds 560]
    python -m benchmarks.strategies [--out FILE.json] --table docs/strategies.md

A cell is one launch: first PARITY steps on rows of 256 to 2048 tokens, in which ranks hold different numbers of them,
then full rows, timed. `single` takes the rows of all GPUs in accumulation steps, so that every step is the same;
`alone` takes those of one GPU, and is what linear scaling is measured by. The two run side by side, one per GPU; the
rest of a group (a shape in 16 or 4 bit) follows, and is compared with its `single` as `unsloth-accel verify` compares.
While a cell loads and trains, the next one imports its packages, and waits before it touches a GPU (benchmarks.worker).
Cells that the file holds already are not run again, so that the whole may be cut into several calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import SHAPES
from benchmarks.worker import GATE, MODULE
from unsloth_accel.accelerate_launch import LaunchError
from unsloth_accel.adapters.saving import versions
from unsloth_accel.hardware import Hardware, detect
from unsloth_accel.planner import Plan, plan
from unsloth_accel.problems import ConfigError
from unsloth_accel.run_config import from_dict
from unsloth_accel.verify.compare import TOLERANCES, compare, largest, precision_of
from unsloth_accel.verify.runs import Trained, read, train

OUT = "benchmarks/results/strategies-2gpu.json"
LENGTH = 2048
PARITY = 8
WARM_UP = 3
TIMED = 5
"""Steps on variable rows; on full rows before the clock starts; and timed."""
CELL_TIMEOUT = 300.0
"""Seconds, the wait at the gate included."""
ALONE = "alone"


@dataclass(frozen=True)
class Cell:
    shape: str
    bits: int
    strategy: str
    """One of unsloth_accel's, or `alone`."""
    per_device: int
    processes: int = 2

    @property
    def group(self) -> str:
        return f"{self.shape}-{self.bits}bit"

    @property
    def name(self) -> str:
        return f"{self.group}-{self.strategy}"

    @property
    def runs_alone(self) -> bool:
        return self.strategy in ("single", ALONE)

    @property
    def rows_per_step(self) -> int:
        return self.per_device * (1 if self.strategy == ALONE else self.processes)


STRATEGIES = ("single", ALONE, "ddp", "fsdp2", "fsdp2_native")
CELLS = [
    Cell(shape, bits, strategy, per_device)
    for shape, per_device in (("1.5B", 8), ("8B", 4))
    for bits in (16, 4)
    for strategy in STRATEGIES
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=OUT, help="JSON; default %(default)s")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    parser.add_argument("--table", metavar="FILE", help="write the Markdown page of what --out holds, and run nothing")
    options = parser.parse_args()
    out = Path(options.out)
    if options.table:
        Path(options.table).write_text(page(json.loads(out.read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    started = time.perf_counter()
    hardware = detect()
    report = opened(out, hardware)
    patterns = [pattern.strip() for pattern in options.cells.split(",")]
    cells = [cell for cell in CELLS if any(fnmatch(cell.name, pattern) for pattern in patterns)]
    wanted = [cell for cell in cells if cell.name not in report["cells"]]
    if len(hardware.devices) < 2 or not cells:
        print(f"no such cells, or too few GPUs: {hardware}", file=sys.stderr)
        return 2
    hardware = replace(hardware, devices=hardware.devices[:2])
    work = Path(options.work)

    def record(cell: Cell, figures: dict[str, Any]) -> None:
        report["cells"][cell.name] = figures
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        shown = {key: figures.get(key) for key in ("step_seconds", "difference", "memory_gib", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)

    for shape in dict.fromkeys(cell.shape for cell in wanted):
        if not (work / shape / "config.json").is_file():
            # In a process of its own, so that this one holds no GPU memory.
            command = [sys.executable, "-m", "benchmarks.random_checkpoint", shape, str(work / shape)]
            subprocess.run(command, check=True, capture_output=True)
            print(f"{time.perf_counter() - started:.0f}s wrote {shape}", flush=True)
    turns: list[list[Cell]] = []
    for group in dict.fromkeys(cell.group for cell in wanted):
        own = [cell for cell in wanted if cell.group == group]
        turns += [turn for turn in ([c for c in own if c.runs_alone], *([c] for c in own if not c.runs_alone)) if turn]
    with ThreadPoolExecutor(2 * len(hardware.devices)) as pool:

        def start(turn: list[Cell]) -> list[Future[dict[str, Any]]]:
            """The turn's launches, which wait at their gates."""
            begun = []
            for cell, device in zip(turn, hardware.devices, strict=False):
                place, gate = hardware, work / f"{cell.name}.gate"
                gate.unlink(missing_ok=True)
                environment = os.environ | {GATE: str(gate)}
                if cell.runs_alone:
                    place = replace(hardware, devices=(device,))
                    environment["CUDA_VISIBLE_DEVICES"] = device.uuid
                single = partial(report["cells"].get, f"{cell.group}-single")
                begun.append(pool.submit(measure, cell, work, place, environment, single))
            return begun

        running = start(turns[0]) if turns else []
        for number, turn in enumerate(turns):
            for cell in turn:
                (work / f"{cell.name}.gate").touch()
            late = time.perf_counter() - started > options.seconds or number + 1 == len(turns)
            following = [] if late else start(turns[number + 1])
            for cell, done in zip(turn, running, strict=True):
                record(cell, done.result())
            if not following:
                break
            running = following
    return 0


def opened(out: Path, hardware: Hardware) -> dict[str, Any]:
    """The report in `out`, or an empty one."""
    report: dict[str, Any] = {
        "command": "python -m benchmarks.strategies",
        "date": time.strftime("%Y-%m-%d"),
        "gpu": [device.name for device in hardware.devices],
        "versions": versions(),
        "shapes": {cell.shape: SHAPES[cell.shape] for cell in CELLS},
        "settings": {"lora_r": 16, "learning_rate": 2e-4, "gradient_checkpointing": "unsloth", "length": LENGTH},
        "steps": {"parity": PARITY, "warm_up": WARM_UP, "timed": TIMED},
        "cells": {},
    }
    if out.is_file():
        report["cells"] = json.loads(out.read_text(encoding="utf-8"))["cells"]
    return report


def measure(
    cell: Cell,
    work: Path,
    hardware: Hardware,
    environment: Mapping[str, str],
    single_of_group: Callable[[], dict[str, Any] | None],
) -> dict[str, Any]:
    """Train `cell` on all of `hardware`: its step time in seconds, memory in GiB by rank, and how it differs from
    the `single` of its group; or the error that ended it."""
    figures: dict[str, Any] = {"cell": asdict(cell)}
    deadline = time.perf_counter() + CELL_TIMEOUT

    def wait(seconds: float) -> None:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"not done after {CELL_TIMEOUT:.0f} s")
        time.sleep(seconds)

    try:
        decided = planned(cell, work, hardware)
        done = train(decided, wait, environment, module=MODULE)
    except (LaunchError, ConfigError, TimeoutError) as error:
        return figures | {"error": str(error)[-1500:]}
    figures |= {
        "batch": str(decided.batch),
        "step_seconds": round(statistics.median(done.seconds[-TIMED:]), 4),
        "tokens_per_second": round(sum(done.tokens[-TIMED:]) / sum(done.seconds[-TIMED:])),
        "memory_gib": {key: done.memory(key) for key in ("loading", "training", "host_loading", "host_training")},
        "loss": done.loss,
        "grad_norm": done.grad_norm,
        "seconds": done.seconds,
        "tokens": done.tokens,
        "wall_seconds": done.wall_seconds,
    }
    single = single_of_group()
    if single and cell.strategy != ALONE and "error" not in single:
        figures["difference"] = difference(cell, decided, done, single)
    return figures


def difference(cell: Cell, decided: Plan, done: Trained, single: dict[str, Any]) -> dict[str, Any]:
    """From the one process, relative; of the adapter too, where that run is still on disk."""
    found: dict[str, Any] = {
        "loss": largest(single["loss"], done.loss),
        "loss_absolute": max(abs(a - b) for a, b in zip(single["loss"], done.loss, strict=True)),
        "grad_norm": largest(single["grad_norm"], done.grad_norm),
        "same_rows": single["tokens"] == done.tokens,
    }
    directory = done.directory.with_name(f"{cell.group}-single")
    alone = replace(decided, strategy="single", batch=replace(decided.batch, num_processes=1))
    if not (directory / "adapter").is_dir():
        return found
    precision = precision_of(decided)
    compared = compare(read(alone, directory), done, TOLERANCES[precision])
    return found | {
        "moved": compared.moved,
        "adapter": compared.adapter,
        "ranks_equal": compared.ranks_equal,
        "tolerance": precision,
        "faults": list(compared.faults),
    }


def planned(cell: Cell, work: Path, hardware: Hardware) -> Plan:
    """The plan of `cell`, with its rows written."""
    data = work / f"rows-{cell.rows_per_step}.jsonl"
    if not data.is_file():  # the cell before may be reading it
        write_rows(data, cell.rows_per_step)
    strategy, processes = ("single", 1) if cell.runs_alone else (cell.strategy, cell.processes)
    values: dict[str, Any] = {
        "model": {"name": str(work / cell.shape), "max_seq_length": LENGTH, "load_in_4bit": cell.bits == 4},
        "data": {"path": str(data)},
        "batch": {"global_size": cell.rows_per_step},
        "distributed": {"strategy": strategy, "num_processes": processes},
        "training": {
            "per_device_train_batch_size": cell.per_device,
            "max_steps": PARITY + WARM_UP + TIMED,
            "learning_rate": 2e-4,
            "train_sampling_strategy": "sequential",
            "overwrite": True,
        },
        "logging": {"progress": False},
        "output_dir": str(work / cell.name),
    }
    return plan(from_dict(values), hardware)


def write_rows(path: Path, per_step: int) -> None:
    """Rows of random words in the order in which they are trained: PARITY steps of variable ones, then full ones."""
    chance = random.Random(0)
    # A character is a token; one more than the limit, so that full rows are cut to it and hold no padding.
    sizes = [chance.randint(LENGTH // 8, LENGTH - 1) for _ in range(PARITY * per_step)]
    write_texts(path, sizes + [LENGTH + 1] * ((WARM_UP + TIMED) * per_step))


def write_texts(path: Path, sizes: Sequence[int]) -> None:
    """One row of random words for each of `sizes`, its characters."""
    chance = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"text": "".join(chance.choices("abcdefghijklmnopqrstuvwxyz     ", k=size))} for size in sizes)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


HEADER = (
    *("strategy", "s/step", "tokens/s", "× one GPU", "of linear", "loss", "grad norm", "adapter"),
    *("loading GiB", "training GiB"),
)


INTRODUCTION = f"""\
# Every strategy against one GPU

{{gpus}}, {{known}}, {{date}}. Random weights, LoRA r=16, bf16;
made by `python -m benchmarks.strategies`.

`single` is one GPU that takes the rows of all in accumulation steps: {PARITY} steps on rows of {LENGTH // 8} to
{LENGTH} tokens, then {WARM_UP + TIMED} on full ones. The differences of loss and gradient norm are the largest of all
these steps, relative to it; the adapter's is the distance between the two at the end, as a share of how far that of
one GPU has moved. *× one GPU* is throughput on full rows over that of `single`; *of linear* is over that of as many
GPUs that each train `alone`, without accumulation. Memory is the peak of torch's allocator, on the fullest GPU."""


def page(report: dict[str, Any]) -> str:
    """docs/strategies.md: a table per shape and precision."""
    gpus = f"{len(report['gpu'])} × {report['gpu'][0]}"
    known = ", ".join(f"{name} {report['versions'][name]}" for name in ("torch", "unsloth", "accelerate", "trl"))
    lines = [INTRODUCTION.format(gpus=gpus, known=known, date=report["date"])]
    for group in dict.fromkeys(cell.group for cell in CELLS):
        own = [cell for cell in CELLS if cell.group == group and cell.name in report["cells"]]
        if own:
            title = f"## {own[0].shape} in {own[0].bits} bit, {own[0].per_device} rows at once on each GPU"
            lines += ["", title, "", *table(own, report["cells"])]
    return "\n".join(lines) + "\n"


def table(cells: Sequence[Cell], found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown lines of one group."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    group = cells[0].group
    single: int | None = found.get(f"{group}-single", {}).get("tokens_per_second")
    alone: int | None = found.get(f"{group}-{ALONE}", {}).get("tokens_per_second")
    for cell in cells:
        figures = found[cell.name]
        if "error" in figures:
            lines.append(f"| {cell.strategy} | {' '.join(figures['error'].split())[:200]} |" + " |" * (len(HEADER) - 2))
            continue
        speed = figures["tokens_per_second"]
        apart = figures.get("difference", {})
        memory = [figures["memory_gib"][phase] for phase in ("loading", "training")]
        cells_of_row = [
            f"{figures['step_seconds']:.3f}",
            f"{speed:,}",
            f"{speed / single:.2f}" if single and cell.strategy != ALONE else "",
            f"{speed / (alone * cell.processes):.3f}" if alone and not cell.runs_alone else "",
            *(f"{100 * apart[key]:.2g} %" if key in apart else "" for key in ("loss", "grad_norm", "adapter")),
            *(f"{max(ranks):.2f}" if ranks else "" for ranks in memory),
        ]
        lines.append(f"| {' | '.join([cell.strategy, *cells_of_row])} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
