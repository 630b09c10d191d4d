"""Who gets which rows of a step: this package's way, Unsloth's, transformers', by number; and what halving costs.

    python -m benchmarks.row_sharing --out benchmarks/results/row-sharing-32-2xH200.json [--cells 'skewed-*']
    python -m benchmarks.row_sharing --table docs/batches.md     (of all results)

`skewed` cells train the same rows of 64 to 2048 tokens, as chats have them (log-normal, median 270), 32 per GPU,
padded or laid end to end (`flat`), by each way. The last step lacks some rows, so that a way that repeats rows shows.
`full` cells train 8 rows of 2048 tokens per GPU with `batch.on_out_of_memory` halve or stop. Nothing is out of memory
in them: they differ by what readiness costs. `-copied` ones may not use the link between the GPUs
(NCCL_P2P_DISABLE=1), as where cards have none.
A round is one launch of each cell, in turn; all have imported their packages before the first trains (benchmarks.gate).
Real tokens per second are those of the steps after the warm-up, the clock read at each log, which waits for the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import random_checkpoint, strategies
from benchmarks.gate import Gate, wait_for_imports
from benchmarks.tables import RESULTS, measured_with
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.files import filled, write_atomically
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan

LENGTH, EVERY, WARM_UP = 2048, 10, 20
"""Tokens; steps per log; steps before the clock starts."""
SKEWED, FULL = 32, 8
"""Rows per GPU and step: about as many tokens in both kinds, so that a step is no shorter than what it takes to start
its kernels."""
MISSING = 3
"""Rows that the last step lacks."""
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "unsloth": {"balance": "rows", "environment": {"UNSLOTH_TOKEN_BALANCE": "1"}},
    "transformers": {"balance": "rows", "training": {"train_sampling_strategy": "batch_rebalance"}},
    "number": {"balance": "rows"},
    "both": {"environment": {"UNSLOTH_TOKEN_BALANCE": "1"}},
}
"""Ways to share rows out: settings of `batch` and `training`, and variables. `both` asks for ours and for Unsloth's."""
IGNORED = "UNSLOTH_TOKEN_BALANCE ignored"


@dataclass(frozen=True)
class Cell:
    name: str
    full: bool
    balance: str = "tokens"
    padding_free: bool = True
    on_out_of_memory: str = "halve"
    training: tuple[tuple[str, Any], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def cells() -> list[Cell]:
    found = []
    for layout, padding_free in (("flat", True), ("padded", False)):
        for name, way in WAYS.items():
            environment = dict(way.get("environment", {}))
            if not padding_free:  # otherwise Unsloth turns it on again
                environment["UNSLOTH_DISABLE_AUTO_PADDING_FREE"] = "1"
            found.append(
                Cell(
                    f"skewed-{layout}-{name}",
                    full=False,
                    balance=way.get("balance", "tokens"),
                    padding_free=padding_free,
                    training=tuple(way.get("training", {}).items()),
                    environment=tuple(environment.items()),
                )
            )
    for link, environment in (("direct", {}), ("copied", {"NCCL_P2P_DISABLE": "1"})):
        for reaction in ("halve", "stop"):
            name = f"full-{reaction}-{link}"
            found.append(Cell(name, full=True, on_out_of_memory=reaction, environment=tuple(environment.items())))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON; runs that it holds are kept, and compared with the new ones")
    parser.add_argument("--table", metavar="FILE", help="write the table of what was measured into FILE, run nothing")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60, help="a multiple of 10")
    parser.add_argument("--rows", type=int, default=SKEWED, help="skewed rows per GPU and step")
    parser.add_argument("--shape", default="1.5B", choices=random_checkpoint.SHAPES)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no run after so many seconds")
    parser.add_argument("--work", default="runs/row-sharing")
    options = parser.parse_args()
    if options.table:
        page = Path(options.table)
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    started = time.perf_counter()
    hardware = Hardware.detect()
    work, count = Path(options.work).resolve(), max(2, len(hardware.devices))
    patterns = options.cells.split(",")
    wanted = [cell for cell in cells() if any(fnmatch(cell.name, pattern) for pattern in patterns)]
    if not (work / options.shape / "config.json").is_file():
        command = [sys.executable, "-m", "benchmarks.random_checkpoint", options.shape, str(work / options.shape)]
        subprocess.run(command, check=True, capture_output=True)
    lengths = write_rows(work, options.steps, options.rows, count)
    report: dict[str, Any] = {
        **measured_with(hardware, "row_sharing", "--rows", str(options.rows)),
        "shape": options.shape,
        "processes": count,
        "rows_per_step": {"skewed": options.rows * count, "full": FULL * count},
        "rows": len(lengths),
        "tokens_of_rows": sum(lengths),
        "median_tokens_per_row": statistics.median(lengths),
        "warm_up_steps": WARM_UP,
        "steps_per_log": EVERY,
        "runs": [],
    }
    out = Path(options.out)
    if out.is_file():
        report["runs"] = json.loads(out.read_text(encoding="utf-8"))["runs"]
    stopped = threading.Event()
    turns = [(number, cell) for number in range(options.rounds) for cell in wanted]
    with ThreadPoolExecutor(len(turns)) as pool:
        gates = {turn: Gate(work / "gates" / f"{turn[1].name}-{turn[0]}", count) for turn in turns}
        running = {
            turn: pool.submit(measure, turn[1], planned(turn[1], gate, work, options, hardware), gate, stopped)
            for turn, gate in gates.items()
        }
        try:
            wait_for_imports((running[turn], gate) for turn, gate in gates.items())
            print(f"{time.perf_counter() - started:.0f}s packages imported", flush=True)
            for (number, cell), gate in gates.items():
                if time.perf_counter() - started > options.seconds:
                    break
                gate.open()
                found = running[number, cell].result()
                report["runs"].append({"cell": cell.name, "round": number, **found})
                report["medians"] = medians(report)
                write_atomically(out, json.dumps(report, indent=1) + "\n")
                shown = {key: found.get(key) for key in ("tokens_per_second", "step_seconds", "said", "error")}
                print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)
        finally:
            stopped.set()  # whoever waits at a gate would wait for ever, and hold a GPU
    print(json.dumps(report.get("medians"), indent=1))
    return 0


def write_rows(work: Path, steps: int, per_device: int, gpus: int) -> list[int]:
    """Write the rows of both kinds, skewed ones for `steps` steps of `per_device` rows on each of `gpus` GPUs; returns
    the tokens of each of these, with the one that ends a text."""
    chance, rows = random.Random(0), steps * per_device * gpus - MISSING
    lengths = [min(LENGTH - 2, max(64, int(chance.lognormvariate(5.6, 0.9)))) for _ in range(rows)]
    strategies.write_texts(work / "skewed.jsonl", lengths)
    strategies.write_texts(work / "full.jsonl", [LENGTH + 1] * (steps * FULL * gpus))
    return [length + 1 for length in lengths]


def planned(cell: Cell, gate: Gate, work: Path, options: argparse.Namespace, hardware: Hardware) -> Plan:
    per_device = FULL if cell.full else options.rows
    values: dict[str, Any] = {
        "model": {"name": str(work / options.shape), "max_seq_length": LENGTH, "keep_activations": 0},
        "data": {"path": str(work / ("full.jsonl" if cell.full else "skewed.jsonl"))},
        "batch": {
            "global_size": per_device * gate.processes,
            "balance": cell.balance,
            "on_out_of_memory": cell.on_out_of_memory,
        },
        "distributed": {"strategy": "ddp", "num_processes": gate.processes},
        "training": {
            "per_device_train_batch_size": per_device,
            "num_train_epochs": 1,
            "learning_rate": 2e-4,
            "logging_steps": EVERY,
            "padding_free": cell.padding_free,
            "overwrite": True,
            **dict(cell.training),
        },
        "logging": {"progress": False},
        "output_dir": str(work / "runs" / gate.path.name),
    }
    return plan(from_dict(values), hardware)


def measure(cell: Cell, decided: Plan, gate: Gate, stopped: threading.Event) -> dict[str, Any]:
    try:
        done = gate.train(decided, os.environ | dict(cell.environment), stopped)
    except Exception as error:  # whatever it is, the other runs are worth having
        return {"error": f"{type(error).__name__}: {error}"[-1500:]}
    log = (done.directory / "verify.log").read_text(encoding="utf-8")
    # A log is of EVERY steps; the last one, of the step that lacks rows, too.
    first, timed = WARM_UP // EVERY, slice(WARM_UP // EVERY, None)
    return {
        "tokens_per_second": round(sum(done.tokens[first:]) / sum(done.seconds[first:])),
        "step_seconds": [round(seconds / EVERY, 4) for seconds in done.seconds[timed]],
        "tokens": sum(done.tokens),
        "padding_free": "Padding-free" in log,
        "loss": [round(loss, 5) for loss in done.loss],
        "grad_norm": [round(norm, 5) for norm in done.grad_norm],
        "memory_gib": done.memory("training"),
        "said": [line.strip() for line in log.splitlines() if "shared out" in line or IGNORED in line][:2],
    }


def medians(report: dict[str, Any]) -> dict[str, Any]:
    """By cell, over its rounds: median tokens per second and seconds per step, against the cell that is first in its
    group; how many tokens were trained beyond those of the rows; and the largest difference of a logged loss."""
    found: dict[str, Any] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in report["runs"]:
        if "error" not in one:
            runs.setdefault(one["cell"], []).append(one)
    for cell in cells():
        if cell.name not in runs:
            continue
        reference = reference_of(cell.name)
        own = runs[cell.name]
        figures: dict[str, Any] = {
            "rounds": len(own),
            "tokens_per_second": statistics.median(one["tokens_per_second"] for one in own),
            "step_seconds": round(statistics.median(value for one in own for value in one["step_seconds"]), 4),
        }
        if not cell.full:
            figures["tokens_repeated"] = own[0]["tokens"] - report["tokens_of_rows"]
        if reference in runs:
            first = runs[reference]
            figures["times"] = round(
                figures["tokens_per_second"] / statistics.median(one["tokens_per_second"] for one in first), 4
            )
            pairs = zip(own[0]["loss"], first[0]["loss"], strict=False)
            figures["largest_loss_difference"] = round(max(abs(a - b) for a, b in pairs), 5)
        found[cell.name] = figures
    return found


def reference_of(name: str) -> str:
    """The cell that `name` is compared with."""
    kind, second, third = name.split("-")
    return f"full-stop-{third}" if kind == "full" else f"skewed-{second}-number"


def with_tables(text: str) -> str:
    """`text` with the tables of what was measured between its two marks."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("row-sharing-*.json"))]
    tables = "\n\n".join("\n".join(table(report)) for report in reports)
    return filled(text, ("<!-- row sharing -->", "<!-- /row sharing -->"), tables)


def table(report: dict[str, Any]) -> Sequence[str]:
    rows = report["rows_per_step"]["skewed"] // report["processes"]
    lines = [f"{len(report['gpu'])} × {report['gpu'][0]}, {report['shape']}, {rows} skewed rows per GPU and step:", ""]
    lines.append("| cell | real tokens/s | s/step | × its reference | largest loss difference | tokens repeated |")
    lines.append("|---|---|---|---|---|---|")
    for name, figures in report["medians"].items():
        repeated = figures.get("tokens_repeated")
        lines.append(
            f"| {name} | {figures['tokens_per_second']:,.0f} | {figures['step_seconds']:.4f} | "
            f"{figures.get('times', 1):.3f} | {figures.get('largest_loss_difference', 0):.4f} | "
            f"{'' if repeated is None else f'{repeated:,}'} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
