"""Every strategy against one GPU, in 16 and 4 bit, for two model sizes: is it the same run, how fast, how much memory?

    python -m benchmarks.strategies [--gpus 4] [--keep 0,24,plan] [--out FILE.json] [--cells '8B-4bit*'] [--seconds 560]
    python -m benchmarks.strategies --table docs/strategies.md

A cell is one launch: first PARITY steps on rows of 256 to 2048 tokens, in which ranks hold different numbers of them,
then full rows, timed. `single` takes the rows of all GPUs in accumulation steps, so that every step is the same;
`alone` and `alone_0` take those of one GPU, on the last and on the first, side by side: GPUs of one kind differ by a
few per cent, and linear scaling is measured by what both do. The rest of a group (a shape in 16 or 4 bit) follows, and
is compared with its `single` as `unsloth-accel verify` compares.
`--keep 0,24` runs each strategy once with Unsloth's checkpointing as it is, and once with 24 decoder blocks that keep
their activations (`8B-16bit-ddp-k24`); `plan` is as many as the plan keeps on these GPUs with these rows. What runs
alone keeps none: it is Unsloth's default on one GPU.
All cells import their packages at the beginning and wait before they load anything (benchmarks.worker), so that only
one trains at a time and nothing else runs beside it.
`--cells '8B-16bit-fsdp2-*'` are variants of fsdp2, in no table and only run when they are asked for by such a pattern:
`-copied`, which copies a rank's own rows, too (adapters/fsdp2/peer_fetch), and `-kept`, which keeps every block once it
was fetched (benchmarks.worker) and so shows what the copies cost.
With BENCHMARK_PROFILE=DIR each cell takes some steps more, first, and writes of them DIR/CELL-RANK.json
(benchmarks.streams).
Cells that the file holds already are not run again, so that the whole may be cut into several calls.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import streams
from benchmarks.gate import Gate, Job, in_turns
from benchmarks.random_checkpoint import SHAPES
from benchmarks.tables import measured_with
from benchmarks.worker import KEEP, PROFILE
from unsloth_accel.adapters.fsdp2.peer_fetch.peer_reach import SWITCH
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.files import write_atomically
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.verify.runs import Trained, read_trained
from unsloth_accel.verify.verdict import compare, largest, precision_of, tolerance

RESULTS = "benchmarks/results"
LENGTH = 2048
PARITY = 5
WARM_UP = 3
TIMED = 6
"""Steps on variable rows; on full rows before the clock starts; and timed."""
ALONE = ("alone_0", "alone")
"""On the first and on the last GPU."""


@dataclass(frozen=True)
class Cell:
    shape: str
    bits: int
    strategy: str
    """One of unsloth_accel's, or of `ALONE`."""
    per_device: int
    processes: int = 2
    variant: str = ""
    """Of `VARIANTS`."""
    kept: int = 0
    """Decoder blocks that keep their activations."""

    @property
    def group(self) -> str:
        return f"{self.shape}-{self.bits}bit"

    @property
    def name(self) -> str:
        return name_of(self.group, self.strategy, self.kept) + (f"-{self.variant}" if self.variant else "")

    @property
    def runs_alone(self) -> bool:
        return self.strategy in ("single", *ALONE)

    @property
    def device(self) -> int:
        """Which GPU it takes, if it runs alone."""
        return self.processes - 1 if self.strategy == ALONE[1] else 0

    @property
    def pauses(self) -> tuple[int, ...]:
        """Steps after which it waits for its turn (benchmarks.gate: `Wave`)."""
        return ()

    @property
    def rows_per_step(self) -> int:
        return self.per_device * (1 if self.strategy in ALONE else self.processes)


def name_of(group: str, strategy: str, kept: int = 0) -> str:
    return f"{group}-{strategy}" + (f"-k{kept}" if kept else "")


STRATEGIES = ("single", *ALONE, "ddp", "fsdp2", "fsdp2_native")


def cells_on(gpus: int) -> list[Cell]:
    return [
        Cell(shape, bits, strategy, per_device, gpus)
        for shape, per_device in (("1.5B", 8), ("8B", 4))
        for bits in (16, 4)
        for strategy in STRATEGIES
    ]


CELLS = cells_on(2)
"""Whose names are those of any number of GPUs."""
VARIANTS = {
    "copied": {SWITCH: "copied"},
    "kept": {KEEP: "1"},
}
"""Variables by name."""


def varied(cells: Sequence[Cell]) -> list[Cell]:
    return [replace(cell, variant=name) for cell in cells if cell.strategy == "fsdp2" for name in VARIANTS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, help="how many; default all of this machine's")
    parser.add_argument("--out", help=f"JSON; default {RESULTS}/strategies-GPUSxCARD.json, in --table all of these")
    parser.add_argument("--keep", default="0", help="blocks that keep their activations, as 0,24,plan; default none")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    parser.add_argument("--table", metavar="FILE", help="write the Markdown page of what was measured, and run nothing")
    options = parser.parse_args()
    # Not above: the page's module imports this one, which is then not the one that was started.
    from benchmarks.strategies_page import page, ratios

    if options.table:
        files = [Path(options.out)] if options.out else measured(Path())
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        Path(options.table).write_text(page(*reports), encoding="utf-8")
        return 0
    started = time.perf_counter()
    hardware = Hardware.detect()
    gpus = options.gpus or len(hardware.devices)
    patterns = [pattern.strip() for pattern in options.cells.split(",")]
    cells = [cell for cell in cells_on(gpus) if any(fnmatch(cell.name, pattern) for pattern in patterns)]
    special = [pattern for pattern in patterns if "fsdp2-" in pattern]
    cells += [cell for cell in varied(cells_on(gpus)) if any(fnmatch(cell.name, pattern) for pattern in special)]
    if not 2 <= gpus <= len(hardware.devices) or not cells:
        print(f"no such cells, or not {gpus} GPUs: {hardware}", file=sys.stderr)
        return 2
    hardware = replace(hardware, devices=hardware.devices[:gpus])
    out = Path(options.out or f"{RESULTS}/strategies-{gpus}x{card_name(hardware)}.json")
    report = opened(out, hardware)
    work = Path(options.work)

    def record(cell: Cell, figures: dict[str, Any]) -> None:
        report["cells"][cell.name] = figures
        report["ratios"] = ratios(report)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        shown = {key: figures.get(key) for key in ("step_seconds", "difference", "memory_gib", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)

    for shape in dict.fromkeys(cell.shape for cell in cells):
        if not (work / shape / "config.json").is_file():
            # In a process of its own, so that this one holds no GPU memory.
            command = [sys.executable, "-m", "benchmarks.random_checkpoint", shape, str(work / shape)]
            subprocess.run(command, check=True, capture_output=True)
            print(f"{time.perf_counter() - started:.0f}s wrote {shape}", flush=True)
    for cell in cells:
        if cell.group not in report["chosen"]:
            chosen = planned(cell, work, hardware, asked="auto", keep="auto")
            report["chosen"][cell.group] = chosen.strategy
            report["chosen_kept"][cell.group] = chosen.keep_activations or 0
    by_group = {group: kept_counts(options.keep, report["chosen_kept"].get(group, 0)) for group in report["chosen"]}
    every = [
        replace(cell, kept=count) for cell in cells for count in ((0,) if cell.runs_alone else by_group[cell.group])
    ]
    wanted = [cell for cell in every if cell.name not in report["cells"]]
    turns: list[list[Cell]] = []
    for group in dict.fromkeys(cell.group for cell in wanted):
        own = [cell for cell in wanted if cell.group == group]
        side_by_side = [cell for cell in own if cell.strategy in ALONE]
        turns += [[cell] for cell in own if cell.strategy == "single"] + ([side_by_side] if side_by_side else [])
        turns += [[cell] for cell in own if not cell.runs_alone]
    shutil.rmtree(work / "gates", ignore_errors=True)

    def job(cell: Cell) -> Job:
        place = replace(hardware, devices=(hardware.devices[cell.device],)) if cell.runs_alone else hardware
        single = partial(report["cells"].get, f"{cell.group}-single")
        return Job(cell.name, gate_of(cell, work), partial(measure, cell, work, place, single_of_group=single))

    def told(what: str) -> None:
        print(f"{time.perf_counter() - started:.0f}s {what}", flush=True)

    by_name = {cell.name: cell for cell in wanted}
    for done, figures in in_turns(
        [list(map(job, turn)) for turn in turns],
        lambda: time.perf_counter() - started <= options.seconds,
        partial(told, "packages imported"),
    ):
        record(by_name[done.name], figures)
    return 0


def kept_counts(asked: str, by_plan: int) -> list[int]:
    """Return the numbers of blocks that `--keep` asks for, each once; `by_plan` stands for `plan`."""
    words = [word.strip() for word in asked.split(",")]
    return list(dict.fromkeys(by_plan if word == "plan" else int(word) for word in words))


def measured(root: Path) -> list[Path]:
    """The files of all numbers of GPUs, in the project's directory `root`."""
    return sorted((root / RESULTS).glob("strategies-*x*.json"))


def card_name(hardware: Hardware) -> str:
    """`H100`, of the machine's first GPU."""
    device = hardware.devices[0]
    return device.card.model.replace(" ", "-") if device.card else device.name.replace(" ", "-")


def gate_of(cell: Cell, work: Path) -> Gate:
    return Gate(work / "gates" / cell.name, 1 if cell.runs_alone else cell.processes, cell.pauses)


def opened(out: Path, hardware: Hardware) -> dict[str, Any]:
    """The report in `out`, or an empty one."""
    report: dict[str, Any] = {
        **measured_with(hardware, "strategies"),
        "shapes": {cell.shape: SHAPES[cell.shape] for cell in CELLS},
        "settings": {"lora_r": 16, "learning_rate": 2e-4, "gradient_checkpointing": "unsloth", "length": LENGTH},
        "steps": {"parity": PARITY, "warm_up": WARM_UP, "timed": TIMED},
        "chosen": {},
        "chosen_kept": {},
        "cells": {},
    }
    if out.is_file():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        report |= {key: earlier[key] for key in ("chosen", "chosen_kept", "cells") if key in earlier}
    return report


def measure(
    cell: Cell,
    work: Path,
    hardware: Hardware,
    stopped: threading.Event,
    *,
    single_of_group: Callable[[], dict[str, Any] | None],
    plan_of: Callable[[Cell, Path, Hardware], Plan] | None = None,
) -> dict[str, Any]:
    """Train `cell` on all of `hardware` once its gate is open: its step time in seconds, memory in GiB by rank, and how
    it differs from the `single` of its group; or the error that ended it. `stopped` ends one that still waits, and
    `plan_of` makes its plan, by default `planned`."""
    figures: dict[str, Any] = {"cell": asdict(cell)}
    environment = os.environ | VARIANTS.get(cell.variant, {})
    if PROFILE in environment:
        environment[PROFILE] = str(Path(environment[PROFILE], cell.name))
    if cell.runs_alone and hardware.devices:
        environment["CUDA_VISIBLE_DEVICES"] = hardware.devices[0].uuid
    try:
        decided = (plan_of or planned)(cell, work, hardware)
        done = gate_of(cell, work).train(decided, environment, stopped)
    except Exception as error:  # whatever it is, the other cells are worth having
        return figures | {"error": f"{type(error).__name__}: {error}"[-1500:]}
    figures |= {
        "batch": str(decided.batch),
        "step_seconds": round(statistics.median(done.seconds[-TIMED:]), 4),
        # Full rows, so that every step has as many.
        "tokens_per_second": round(done.tokens[-1] / statistics.median(done.seconds[-TIMED:])),
        "memory_gib": {key: done.memory(key) for key in ("loading", "training", "host_loading", "host_training")},
        "loss": done.loss,
        "grad_norm": done.grad_norm,
        "seconds": done.seconds,
        "tokens": done.tokens,
        "optim": decided.run.training["optim"],
    }
    if cell.strategy == "fsdp2":
        # What the driver lets map is not in our hands, and worth a per cent or two.
        figures["mapped_gib"] = done.memory("mapped")
    single = single_of_group()
    if single and cell.strategy not in ALONE and "error" not in single:
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
    alone = replace(decided, strategy="single", num_processes=1)
    if not (directory / "adapter").is_dir():
        return found
    precision = precision_of(decided)
    method = decided.method
    allowed = tolerance(
        precision,
        device=decided.device,
        depends_on_ranks=method.depends_on_ranks,
        sums_answers=method.sums_answers,
    )
    compared = compare(read_trained(alone, directory), done, allowed)
    return found | {
        "moved": compared.moved,
        "adapter": compared.adapter,
        "ranks_equal": compared.ranks_equal,
        "tolerance": precision,
        "faults": list(compared.faults),
    }


def planned(
    cell: Cell, work: Path, hardware: Hardware, asked: str | None = None, keep: int | str | None = None
) -> Plan:
    """The plan of `cell`, with its rows written; `asked` is another strategy, for all of the GPUs, and `keep` another
    number of blocks that keep their activations."""
    data = work / f"rows-{cell.rows_per_step}.jsonl"
    write_rows(data, cell.rows_per_step)
    strategy, processes = ("single", 1) if cell.runs_alone else (cell.strategy, cell.processes)
    if asked:
        strategy, processes = asked, cell.processes
    values: dict[str, Any] = {
        "model": {
            "name": str(work / cell.shape),
            "max_seq_length": LENGTH,
            "load_in_4bit": cell.bits == 4,
            "keep_activations": cell.kept if keep is None else keep,
        },
        "data": {"path": str(data)},
        "batch": {"global_size": cell.per_device * processes if asked else cell.rows_per_step},
        "distributed": {"strategy": strategy, "num_processes": processes},
        "training": {
            "per_device_train_batch_size": cell.per_device,
            "max_steps": steps(),
            "learning_rate": 2e-4,
            "train_sampling_strategy": "sequential",
            "overwrite": True,
        },
        "logging": {"progress": False},
        "output_dir": str(work / f"{cell.processes}-gpus" / cell.name),
    }
    return plan(from_dict(values), hardware)


def write_rows(path: Path, per_step: int) -> None:
    """Rows of random words in the order in which they are trained: PARITY steps of variable ones, then full ones."""
    chance = random.Random(0)
    # A character is a token; one more than the limit, so that full rows are cut to it and hold no padding.
    sizes = [chance.randint(LENGTH // 8, LENGTH - 1) for _ in range(PARITY * per_step)]
    write_texts(path, sizes + [LENGTH + 1] * ((steps() - PARITY) * per_step))


def steps() -> int:
    """Of a cell; those that are profiled, and the one in which that is written down, are none of the timed ones."""
    return PARITY + WARM_UP + (2 * streams.STEPS + 1 if os.environ.get(PROFILE) else 0) + TIMED


def write_texts(path: Path, sizes: Sequence[int]) -> None:
    """One row of random words for each of `sizes`, its characters."""
    chance = random.Random(0)
    rows = ({"text": "".join(chance.choices("abcdefghijklmnopqrstuvwxyz     ", k=size))} for size in sizes)
    # Cells share it, and begin side by side.
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
