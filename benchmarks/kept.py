"""Time and memory of a step by how many blocks keep their activations; the planner is fitted to half of it.

    python -m benchmarks.kept --out benchmarks/results/kept-1xH200.json [--cells '8B-*'] [--seconds 560]
    python -m benchmarks.kept --gpus 2 --out benchmarks/results/kept-2xH200.json [--cells '*-ddp-*'] [--seconds 560]

Full rows, LoRA r=16, Unsloth's checkpointing, fused AdamW. Every second cell of a model is held out: nothing is fitted
to it (`python -m benchmarks.memory_report` puts the predictions beside all of them). Cells that the file holds already
are not measured again, so that the whole may be cut into several calls; `--again` measures them anew. With `--rounds N`
the cells of a model take turns N times: a step that is as slow as Python launches its kernels takes half as long again
in one half minute as in the next, and its median is that of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.loaded import Cell, measured, write_shapes
from benchmarks.random_checkpoint import SHAPES
from benchmarks.tables import measured_with

STEPS, WARM_UP = 7, 3


def _cells(shape: str, *ways: tuple[int, int, int], **options: Any) -> list[Cell]:
    """Return cells of rows per device, tokens per row, and blocks that keep their activations."""
    return [Cell(shape=shape, per_device=rows, length=length, kept=kept, **options) for rows, length, kept in ways]


BY_MODEL = [
    _cells(
        "8B",
        *((4, 2048, 0), (4, 2048, 8), (4, 2048, 16), (4, 2048, 24), (4, 2048, 32), (1, 8192, 0), (1, 8192, 32)),
        *((1, 8192, 16), (8, 1024, 24), (16, 512, 32), (1, 2048, 0), (1, 2048, 32), (2, 4096, 16), (16, 2048, 8)),
    ),
    _cells(
        "8B",
        *((4, 2048, 0), (4, 2048, 16), (4, 2048, 32), (1, 8192, 24), (1, 512, 0), (8, 1024, 32), (2, 4096, 8)),
        load_in_4bit=True,
    ),
    _cells("3B", (8, 2048, 0), (8, 2048, 16), (8, 2048, 28), (2, 8192, 8), (4, 1024, 28), (1, 512, 0), (16, 512, 16)),
    _cells("3B", (8, 2048, 24), (8, 2048, 0), (1, 4096, 28), (2, 1024, 8), load_in_4bit=True),
    _cells("1.5B", (8, 2048, 0), (8, 2048, 8), (8, 2048, 16), (2, 8192, 16), (16, 512, 8), (1, 1024, 16), (1, 1024, 0)),
    _cells("1.5B", (8, 2048, 8), (4, 4096, 16), (2, 512, 0), (16, 1024, 16), load_in_4bit=True),
    _cells("4B", (4, 2048, 0), (4, 2048, 24), (1, 8192, 32), (2, 1024, 36)),
]
CALIBRATION = [cell for cells in BY_MODEL for cell in cells[::2]]
HELD_OUT = [cell for cells in BY_MODEL for cell in cells[1::2]]
CELLS = [cell for cells in BY_MODEL for cell in cells]
_DDP: dict[str, Any] = {"strategy": "ddp", "processes": 2}
_FSDP2: dict[str, Any] = {"strategy": "fsdp2", "processes": 2}
ON_TWO = [
    _cells("8B", (4, 2048, 0), (4, 2048, 24), (4, 2048, 32), (1, 8192, 16), **_DDP),
    _cells("8B", (4, 2048, 0), (4, 2048, 24), (4, 2048, 32), (2, 4096, 8), **_FSDP2),
    _cells("8B", (4, 2048, 16), (4, 2048, 0), (2, 2048, 32), load_in_4bit=True, **_DDP),
    _cells("8B", (4, 2048, 16), (4, 2048, 32), load_in_4bit=True, **_FSDP2),
    _cells("3B", (8, 2048, 16), (8, 2048, 0), **_FSDP2),
    _cells("1.5B", (8, 2048, 0), (8, 2048, 16), (4, 4096, 8), **_DDP),
]
CALIBRATION_ON_TWO = [cell for cells in ON_TWO for cell in cells[::2]]
HELD_OUT_ON_TWO = [cell for cells in ON_TWO for cell in cells[1::2]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON; cells that it holds already are not measured again")
    parser.add_argument("--gpus", type=int, default=1, choices=(1, 2), help="cells of one GPU (default), or of two")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--again", action="store_true", help="measure cells that the file holds, too")
    parser.add_argument("--rounds", type=int, default=1, help="how often the cells of a model take turns")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of a cell and round, {WARM_UP} to warm up")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    options = parser.parse_args()
    work, out, started = Path(options.work).resolve(), Path(options.out), time.perf_counter()
    patterns = options.cells.split(",")
    report = opened(out, "kept", {"steps": STEPS, "warm_up_steps": WARM_UP, "shapes": SHAPES, "cells": {}})
    wanted = [
        cell
        for cell in (CELLS if options.gpus == 1 else [cell for cells in ON_TWO for cell in cells])
        if any(fnmatch(cell.name, pattern) for pattern in patterns)
        and (options.again or cell.name not in report["cells"])
    ]
    write_shapes([cell.shape for cell in wanted], work)
    print(f"{time.perf_counter() - started:.0f}s checkpoints written", flush=True)

    def may_go_on() -> bool:
        return bool(time.perf_counter() - started < options.seconds)

    rounds: dict[str, list[list[float]]] = {}
    for cell, figures in measured(
        in_turns(wanted, options.rounds), work, steps=options.steps, warm_up=WARM_UP, may_go_on=may_go_on
    ):
        if options.rounds > 1 and "seconds" in figures:
            add_round(figures, rounds.setdefault(cell.name, []))
        report["cells"][cell.name] = figures
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        shown = {key: figures.get(key) for key in ("memory_gib", "median_step_seconds", "wall_seconds", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)
    return 0


def in_turns(cells: list[Cell], rounds: int) -> list[Cell]:
    """Return the cells of each model `rounds` times, in turns."""
    groups = [list(own) for _, own in itertools.groupby(cells, key=lambda cell: cell.group)]
    return [cell for own in groups for cell in own * rounds]


def add_round(figures: dict[str, Any], earlier: list[list[float]]) -> None:
    """Add the steps of `figures` to those of its cell's `earlier` rounds, and let them tell the median of all."""
    earlier.append(figures["seconds"])
    steps = [second for one in earlier for second in one[WARM_UP:]]
    figures |= {"rounds": list(earlier), "median_step_seconds": round(statistics.median(steps), 4)}


def opened(out: Path, module: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the report that `out` holds, or `values` with what they were measured on."""
    from unsloth_accel.hardware.hardware import Hardware

    if out.is_file():
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
    hardware = Hardware.detect()
    memory = round(hardware.devices[0].memory_gib, 2) if hardware.devices else None
    head = measured_with(hardware, module, "--out", out.name)
    return {**head, "gpu_memory_gib": memory, **values}


if __name__ == "__main__":
    sys.exit(main())
