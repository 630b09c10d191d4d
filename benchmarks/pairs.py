"""DPO and KTO on two GPUs: is it the run of one, how fast, how much memory; and DPO against the script of a user.

    python -m benchmarks.pairs [--cells 'dpo-*'] [--seconds 560] [--out FILE.json]
    python -m benchmarks.pairs --table FILE.json    (prints what was measured as Markdown, and runs nothing)
    python -m benchmarks.pairs --device cpu --shape tiny --length 96 --out TRIAL.json    (tries it without a GPU)

Cells are those of benchmarks.strategies for another method: PARITY steps on rows of unequal lengths, then full ones,
timed; `single` is one GPU that takes the rows of both in accumulation steps. Their figures have the plan's memory and
step time beside what was measured. `against-plain` cells are DPO by `unsloth-accel launch` and by
benchmarks/plain_dpo.py, which uses this package nowhere, in ROUNDS rounds that alternate: the same full pairs, every
field that matters given, and no activations kept, so that both do the same.
Everything imports its packages at once and then trains by itself; cells that the file holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gate import Gate, Job, in_turns
from benchmarks.loaded import write_shapes
from benchmarks.strategies import TIMED, Cell, card_name, gate_of, measure
from benchmarks.tables import RESULTS
from unsloth_accel.adapters.saving import versions
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.files import write_atomically
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.methods import METHODS
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.strategies import STRATEGIES
from unsloth_accel.verify.verdict import largest, share

GPUS = 2
LENGTH = 1024
"""Tokens of a full side, and TRL's own `max_length` of DPO."""
PARITY, WARM_UP = 4, 2
"""Steps on variable rows; on full rows before the clock starts. Then come TIMED ones."""
ROUNDS, PLAIN_WARM_UP, PLAIN_TIMED = 3, 3, 10
PER_DEVICE = {"dpo": 4, "kto": 8}
"""Rows at once on each GPU, which are equally many sequences."""
METHODS_HERE = tuple(PER_DEVICE)
LEARNING_RATE = 1e-5
WAYS = ("plain", "ours")
LETTERS = {
    "prompt": "abcdefghijklmnopqrstuvwxyz     ",
    "chosen": "abcdefghijklmnopqr    ",
    "rejected": "jklmnopqrstuvwxyz    ",
}
"""Letters of random words; answers differ in theirs, so that a preference can be learned."""


@dataclass(frozen=True)
class PairCell(Cell):
    method: str = "dpo"
    length: int = LENGTH
    on_cpu: bool = False

    @property
    def group(self) -> str:
        return f"{self.method}-{super().group}"

    @property
    def device(self) -> int:
        """One GPU's runs in 16 and in 4 bit go side by side."""
        return 0 if self.bits == 16 or self.on_cpu else 1


@dataclass(frozen=True)
class Against:
    """One round of DPO by one of `WAYS`."""

    round: int
    way: str
    shape: str
    length: int

    @property
    def name(self) -> str:
        return f"against-plain-{self.round}-{self.way}"


def cells_of(shape: str, length: int, *, on_cpu: bool) -> list[PairCell]:
    several = [name for name in ("ddp", "fsdp2") if not on_cpu or STRATEGIES[name].runs_on_cpu]
    return [
        PairCell(shape, bits, strategy, PER_DEVICE[method], GPUS, method=method, length=length, on_cpu=on_cpu)
        for method in METHODS_HERE
        for bits in (16, 4)
        for strategy in ("single", *several)
    ]


def rounds_of(shape: str, length: int) -> list[Against]:
    """The rounds in the order in which they run: the one that is first takes turns, since GPUs get warm."""
    ways = [WAYS if number % 2 == 0 else WAYS[::-1] for number in range(ROUNDS)]
    return [Against(number, way, shape, length) for number in range(ROUNDS) for way in ways[number]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON; default benchmarks/results/preferences-2xCARD.json")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--shape", default="1.5B")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a full side; default %(default)s")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries this benchmark itself")
    parser.add_argument("--table", metavar="FILE", help="print the Markdown tables of a file of results, run nothing")
    options = parser.parse_args()
    if options.table:
        print("\n".join(tables(json.loads(Path(options.table).read_text(encoding="utf-8")))))
        return 0
    started = time.perf_counter()
    on_cpu = options.device == "cpu"
    hardware = Hardware.detect()
    if len(hardware.devices) < GPUS and not on_cpu:
        print(f"two GPUs are needed: {hardware}", file=sys.stderr)
        return 2
    hardware = replace(hardware, devices=() if on_cpu else hardware.devices[:GPUS])
    out = Path(options.out or RESULTS / f"preferences-{GPUS}x{card_name(hardware)}.json")
    report, work = opened(out, hardware, options.shape, options.length), Path(options.work).resolve()
    patterns = [pattern.strip() for pattern in options.cells.split(",")]

    def is_wanted(one: PairCell | Against) -> bool:
        return one.name not in report["cells"] and any(fnmatch(one.name, pattern) for pattern in patterns)

    cells = [cell for cell in cells_of(options.shape, options.length, on_cpu=on_cpu) if is_wanted(cell)]
    rounds = [one for one in rounds_of(options.shape, options.length) if is_wanted(one)]

    def told(what: str) -> None:
        print(f"{time.perf_counter() - started:.0f}s {what}", flush=True)

    write_shapes([options.shape], work)
    told(f"wrote {options.shape}")
    shutil.rmtree(work / "gates", ignore_errors=True)
    jobs = {cell: job(cell, work, hardware, report) for cell in cells}
    turns = [[jobs[cell] for cell in cells if cell.runs_alone and cell.method == method] for method in METHODS_HERE]
    turns += [[jobs[cell]] for cell in cells if not cell.runs_alone]
    turns += [[Job(one.name, gate, partial(trained, one, work, hardware, gate))] for one in rounds
              for gate in [Gate(work / "gates" / one.name, GPUS)]]  # fmt: skip
    may_go_on = lambda: time.perf_counter() - started <= options.seconds  # noqa: E731
    for done, figures in in_turns([turn for turn in turns if turn], may_go_on, partial(told, "packages imported")):
        report["cells"][done.name] = figures
        report["against_plain"] = compared(report["cells"])
        write_atomically(out, json.dumps(report, indent=1).replace(f"{work}/", "") + "\n")
        shown = ("step_seconds", "planned", "difference", "memory_gib", "error")
        told(f"{done.name} {json.dumps({key: figures[key] for key in shown if key in figures})}")
    print(json.dumps(report.get("against_plain")))
    return 0


def opened(out: Path, hardware: Hardware, shape: str, length: int) -> dict[str, Any]:
    """Return the report in `out`, or an empty one."""
    report: dict[str, Any] = {
        "command": "python -m benchmarks.pairs",
        "date": time.strftime("%Y-%m-%d"),
        "gpu": [device.name for device in hardware.devices] or ["CPU"],
        "gpu_memory_gib": [round(device.memory_gib, 2) for device in hardware.devices],
        "versions": versions(),
        "shape": shape,
        "settings": {"lora_r": 16, "learning_rate": LEARNING_RATE, "length": length, "rows_per_device": PER_DEVICE},
        "steps": {"parity": PARITY, "warm_up": WARM_UP, "timed": TIMED},
        "cells": {},
    }
    if out.is_file():
        report["cells"] = json.loads(out.read_text(encoding="utf-8"))["cells"]
    return report


def job(cell: PairCell, work: Path, hardware: Hardware, report: dict[str, Any]) -> Job:
    place = replace(hardware, devices=hardware.devices[cell.device :][:1]) if cell.runs_alone else hardware

    def figures(stopped: threading.Event) -> dict[str, Any]:
        single = partial(report["cells"].get, f"{cell.group}-single")
        found = measure(cell, work, place, stopped, single_of_group=single, plan_of=planned)
        try:
            return found if "error" in found else found | beside_the_plan(planned(cell, work, place))
        except Exception as error:  # what was measured is worth having
            return found | {"planned": f"{type(error).__name__}: {error}"}

    return Job(cell.name, gate_of(cell, work), figures)


def beside_the_plan(decided: Plan) -> dict[str, Any]:
    """Return what was planned, and what the run itself says of its memory and of what it learned."""
    files = RunDirectory(decided.run.output_dir)
    results = json.loads(files.results.read_text(encoding="utf-8"))
    last = json.loads(files.step_log.read_text(encoding="utf-8").splitlines()[-1])
    memory, speed = decided.memory, decided.speed
    return {
        "planned": {
            "terms_gib": memory.to_dict() if memory else None,
            "allocated_gib": round(memory.allocated, 3) if memory else None,
            "held_gib": round(memory.held, 3) if memory else None,
            "step_seconds": round(speed.step_seconds, 4) if speed else None,
        },
        "measured_gib": results.get("memory_gib"),
        "last": {name: last[name] for name in (*METHODS[decided.run.method].charts, "kl") if name in last},
    }


def steps() -> int:
    return PARITY + WARM_UP + TIMED


def values_of(
    method: str, bits: int, model: Path, data: Path, out: Path, *, length: int, on_cpu: bool
) -> dict[str, Any]:
    """Return what all runs of this benchmark have in run.yaml."""
    return {
        "method": method,
        "model": {
            "name": str(model),
            "max_seq_length": length,
            "load_in_4bit": bits == 4,
            "keep_activations": 0,
        },
        "data": {"path": str(data)},
        "training": {**shared_fields(), "per_device_train_batch_size": PER_DEVICE[method], "overwrite": True},
        "distributed": {"device": "cpu"} if on_cpu else {},
        "batch": {"on_out_of_memory": "stop", "rehearse": False},
        "logging": {"progress": False},
        "output_dir": str(out),
    }


def shared_fields() -> dict[str, Any]:
    """Return the fields of a trainer's config that decide what is learned, given to every run alike."""
    return {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "beta": 0.1,
    }


def planned(cell: Cell, work: Path, hardware: Hardware) -> Plan:
    """The plan of `cell`, with its rows written."""
    assert isinstance(cell, PairCell)
    data = work / f"{cell.method}-{cell.rows_per_step}.jsonl"
    chance = random.Random(0)
    parity = [chance.randint(cell.length // 8, cell.length - 1) for _ in range(PARITY * cell.rows_per_step)]
    write_answers(data, cell.method, parity + [cell.length] * ((steps() - PARITY) * cell.rows_per_step))
    values = values_of(
        cell.method,
        cell.bits,
        work / cell.shape,
        data,
        work / f"{cell.processes}-gpus" / cell.name,
        length=cell.length,
        on_cpu=cell.on_cpu,
    )
    values["training"]["max_steps"] = steps()
    values["batch"]["global_size"] = cell.rows_per_step
    values["distributed"] |= {
        "strategy": "single" if cell.runs_alone else cell.strategy,
        "num_processes": 1 if cell.runs_alone else cell.processes,
    }
    return plan(from_dict(values), hardware)


def write_answers(path: Path, method: str, sizes: list[int]) -> None:
    """Write a row for each of `sizes`, the tokens of its longer side: a character is a token, and the end is one."""
    chance = random.Random(0)

    def text(name: str, size: int) -> str:
        return "".join(chance.choices(LETTERS[name], k=size))

    rows = []
    for number, size in enumerate(sizes):
        prompt, answer = text("prompt", size // 4), size - size // 4 - 1
        if method == "kto":
            good = number % 2 == 0
            side = text("chosen" if good else "rejected", answer)
            rows.append({"prompt": prompt, "completion": side, "label": good})
            continue
        # Full pairs hold no padding; others have a shorter rejected side.
        other = answer if size == max(sizes) else chance.randint(answer // 2, answer)
        rows.append({"prompt": prompt, "chosen": text("chosen", answer), "rejected": text("rejected", other)})
    # Cells share it, and begin side by side.
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def trained(one: Against, work: Path, hardware: Hardware, gate: Gate, stopped: threading.Event) -> dict[str, Any]:
    """Train full pairs by one way, and return losses, gradient norms, and seconds; or the error that ended it."""
    on_cpu, rows, count = not hardware.devices, PER_DEVICE["dpo"] * GPUS, PLAIN_WARM_UP + PLAIN_TIMED
    data, out = work / "dpo-full.jsonl", work / "against" / one.name
    write_answers(data, "dpo", [one.length] * rows * count)
    environment = os.environ | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {})
    try:
        if one.way == "plain":
            found = _plain(one, work, data, out, gate, environment, stopped, on_cpu=on_cpu)
        else:
            values = values_of("dpo", 16, work / one.shape, data, out, length=one.length, on_cpu=on_cpu)
            values["training"]["max_steps"] = count
            values["batch"]["global_size"] = rows
            values["distributed"] |= {"strategy": "ddp", "num_processes": GPUS}
            done = gate.train(plan(from_dict(values), hardware), os.environ, stopped)
            found = {"seconds": done.seconds, "loss": done.loss, "grad_norm": done.grad_norm}
            found["peak_gib"] = max(done.memory("training"), default=None)
    except Exception as error:  # whatever it is, the other rounds are worth having
        return {"error": f"{type(error).__name__}: {error}"[-1500:]}
    return {"step_seconds": round(statistics.median(found["seconds"][PLAIN_WARM_UP:]), 4), **found}


def _plain(
    one: Against,
    work: Path,
    data: Path,
    out: Path,
    gate: Gate,
    environment: dict[str, str],
    stopped: threading.Event,
    *,
    on_cpu: bool,
) -> dict[str, Any]:
    """Train by the script that uses this package nowhere."""
    # TRL's own accumulation is 1, Unsloth's 2.
    fields = shared_fields() | {
        "max_length": one.length,
        "max_steps": PLAIN_WARM_UP + PLAIN_TIMED,
        "per_device_train_batch_size": PER_DEVICE["dpo"],
        "gradient_accumulation_steps": 1,
        **({"use_cpu": True, "bf16": False} if on_cpu else {"bf16": True}),
    }
    settings = out.with_suffix(".settings.json")
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(settings, json.dumps(fields))
    kind = (
        ["--config_file", "accelerate_configs/cpu_ddp.yaml"] if on_cpu else ["--multi_gpu", "--mixed_precision", "bf16"]
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", str(GPUS)]
    launch += ["--main_process_port", "0", "benchmarks/plain_dpo.py"]
    told = out.with_suffix(".json")
    gate.run(
        [*launch, str(work / one.shape), str(data), str(settings), str(told)],
        out.with_suffix(".log"),
        environment,
        stopped,
    )
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found


def compared(cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio of speeds in each round, ours over plain, their median, and how far losses and norms differ."""
    found: dict[str, Any] = {"ratios": [], "loss": [], "grad_norm": []}
    for number in range(ROUNDS):
        pair = [cells.get(f"against-plain-{number}-{way}") for way in WAYS]
        if any(one is None or "error" in one for one in pair):
            continue
        plain, ours = (one for one in pair if one is not None)
        found["ratios"].append(round(plain["step_seconds"] / ours["step_seconds"], 4))
        for name in ("loss", "grad_norm"):
            found[name].append(largest(plain[name], ours[name]))
    return found | {"ratio": statistics.median(found["ratios"]) if found["ratios"] else None}


def tables(report: dict[str, Any]) -> list[str]:
    """Return Markdown lines: parity and speed by cell, predicted beside measured, and ours against the plain script."""
    cells = {name: one for name, one in report["cells"].items() if "cell" in one}
    lines = ["| cell | s/step | loss | grad norm | adapter | ranks equal |", "|---|---|---|---|---|---|"]
    for name, one in cells.items():
        if "error" in one:
            lines.append(f"| {name} | {' '.join(one['error'].split())[:120]} | | | | |")
            continue
        apart = one.get("difference", {})
        shown = [share(apart[key]) if key in apart else "" for key in ("loss", "grad_norm", "adapter")]
        equal = {True: "yes", False: "NO"}.get(apart.get("ranks_equal"), "")
        lines.append(f"| {name} | {one['step_seconds']:.3f} | {' | '.join(shown)} | {equal} |")
    lines += ["", "| cell | allocated GiB: planned | measured | error | s/step: planned | measured | error |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, one in cells.items():
        found = predicted(one)
        if found:
            gib, seconds = found
            parts = [f"{gib[0]:.2f} | {gib[1]:.2f} | {gib[0] / gib[1] - 1:+.1%}"]
            parts.append(f"{seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1] - 1:+.1%}")
            lines.append(f"| {name} | {' | '.join(parts)} |")
    against = report.get("against_plain") or {}
    if against.get("ratios"):
        rounds = ", ".join(f"{ratio:.3f}" for ratio in against["ratios"])
        apart = f"losses differ by {share(max(against['loss']))}, gradient norms by {share(max(against['grad_norm']))}"
        lines += ["", f"DPO by ours is {against['ratio']:.3f} times as fast as the plain script ({rounds}); {apart}."]
    return lines


def predicted(figures: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return GiB that torch allocated on the fullest GPU and seconds of a step, each as planned and as measured; None
    where a cell has not both."""
    planned, memory = figures.get("planned"), figures.get("memory_gib", {})
    own = [max(memory[phase]) for phase in ("loading", "training") if memory.get(phase)]
    if not isinstance(planned, dict) or not own or not planned.get("step_seconds") or not planned.get("allocated_gib"):
        return None
    return (planned["allocated_gib"], max(own)), (planned["step_seconds"], figures["step_seconds"])


if __name__ == "__main__":
    sys.exit(main())
