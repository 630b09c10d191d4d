"""DPO and KTO on two GPUs: is it the run of one, how fast, how much memory; and DPO against the script of a user.

    python -m benchmarks.pairs [--cells 'dpo-*'] [--seconds 560] [--out FILE.json]
    python -m benchmarks.pairs --table FILE.json    (prints what was measured as Markdown, and runs nothing)
    python -m benchmarks.pairs --device cpu --shape tiny --length 96 --out TRIAL.json    (tries it without a GPU)

Cells are those of benchmarks.strategies for another method: PARITY steps on rows of unequal lengths, then full ones,
timed; `single` is one GPU that takes the rows of both in accumulation steps. Their figures have the plan's memory and
step time beside what was measured. In bfloat16 a loss of pairs isn't the same twice (docs/preferences.md), so two runs
of one GPU are the yardstick: `again`, which is `single` once more, and `chance`, whose micro-batches have other rows of
the same step. `plain` and `ours` are DPO by benchmarks/plain_dpo.py, which uses this package nowhere, and by
`unsloth-accel launch`: the same full pairs, every field that matters given, and no activations kept. Both are loaded,
and their ROUNDS rounds alternate.
Everything imports its packages at once, loads and compiles side by side in two waves, and is timed by itself (see
benchmarks.gate); cells that the file holds are not run again. With two H200 a wave takes about two minutes.
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

from benchmarks.gate import Gate, Job, Wave, in_waves
from benchmarks.loaded import write_shapes
from benchmarks.pair_rows import write_answers
from benchmarks.strategies import TIMED, Cell, card_name, gate_of, measure
from benchmarks.tables import RESULTS, ROOT, measured_with
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
WAVE_SECONDS = 75.0
"""What the second wave takes of two H200, as far as it was not seen yet."""
ROUNDS, PLAIN_WARM_UP, PLAIN_TIMED = 3, 3, 10
"""Rounds; steps before the first, and of each."""
ROUND_ENDS = tuple(PLAIN_WARM_UP + PLAIN_TIMED * number for number in range(ROUNDS + 1))
PER_DEVICE = {"dpo": 4, "kto": 8}
"""Rows at once on each GPU, which are equally many sequences."""
METHODS_HERE = tuple(PER_DEVICE)
LEARNING_RATE = 1e-5
WAYS = ("plain", "ours")
OURS = "against-ours"
AGAIN, CHANCE = "again", "chance"


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

    @property
    def is_yardstick(self) -> bool:
        return self.strategy in (AGAIN, CHANCE)

    @property
    def runs_alone(self) -> bool:
        return self.is_yardstick or super().runs_alone

    @property
    def pauses(self) -> tuple[int, ...]:
        """Before its timed steps, and at their end; a yardstick is not timed."""
        return () if self.is_yardstick else (PARITY + WARM_UP, steps())

    @property
    def directory(self) -> str:
        """Its run's; `again` takes the place of `single`, whose adapter the others are compared with."""
        return f"{self.group}-single" if self.strategy == AGAIN else self.name


@dataclass(frozen=True)
class Against:
    """DPO by one of `WAYS`."""

    way: str
    shape: str
    length: int

    @property
    def name(self) -> str:
        return f"against-{self.way}"


def cells_of(shape: str, length: int, *, on_cpu: bool) -> list[PairCell]:
    several = [name for name in ("ddp", "fsdp2") if not on_cpu or STRATEGIES[name].runs_on_cpu]
    return [
        PairCell(shape, bits, strategy, PER_DEVICE[method], GPUS, method=method, length=length, on_cpu=on_cpu)
        for method in METHODS_HERE
        for bits in (16, 4)
        for strategy in ("single", *several)
    ]


def yardsticks_of(cells: list[PairCell], wanted: list[PairCell], work: Path) -> list[PairCell]:
    """Return `chance` of every group of `cells`, and `again` of those whose `single` neither is `wanted` nor left its
    adapter on this machine."""
    singles = [cell for cell in cells if cell.strategy == "single"]
    return [
        replace(cell, strategy=strategy)
        for cell in singles
        for strategy in (AGAIN, CHANCE)
        if strategy == CHANCE or not (cell in wanted or (directory_of(cell, work) / "adapter").is_dir())
    ]


def directory_of(cell: PairCell, work: Path) -> Path:
    return work / f"{cell.processes}-gpus" / cell.directory


def waves_of(cells: list[PairCell], rounds: list[Against], jobs: dict[str, Job]) -> list[Wave]:
    """Return the first wave, with what others are compared with, the rounds and ddp; and the second, with the rest."""
    in_turn = [(jobs[one.name], start) for number, start in enumerate(ROUND_ENDS[:-1])
               for one in (rounds if number % 2 == 0 else rounds[::-1])]  # fmt: skip
    waves = []
    for number, strategies in enumerate((("single", AGAIN, "ddp"), ("fsdp2", CHANCE))):
        own = [cell for name in strategies for cell in cells if cell.strategy == name]
        timed = [cell for cell in own if cell.pauses]
        legs = [[leg] for leg in (in_turn if number == 0 else [])]
        alone = [[cell for cell in timed if cell.runs_alone and cell.method == method] for method in METHODS_HERE]
        others = [[cell] for cell in timed if not cell.runs_alone]
        legs += [[(jobs[cell.name], cell.pauses[0]) for cell in leg] for leg in alone + others if leg]
        names = [one.name for one in (rounds if number == 0 else [])] + [cell.name for cell in own]
        if names:
            waves.append(Wave([jobs[name] for name in names], legs))
    return waves


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="JSON; default benchmarks/results/preferences-2xCARD.json")
    parser.add_argument("--cells", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--shape", default="1.5B")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a full side; default %(default)s")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no wave that would take longer")
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
        done = report["yardsticks" if isinstance(one, PairCell) and one.is_yardstick else "cells"].get(one.name)
        return (not done or "error" in done) and any(fnmatch(one.name, pattern) for pattern in patterns)

    every = cells_of(options.shape, options.length, on_cpu=on_cpu)
    cells = [cell for cell in every if is_wanted(cell)]
    rounds = [Against(way, options.shape, options.length) for way in WAYS]
    rounds = rounds if any(map(is_wanted, rounds)) else []
    if rounds and "loss" in (before := report["cells"].get(OURS, {})):
        report["yardsticks"][OURS] = before
    yardsticks = [cell for cell in yardsticks_of(every, cells, work) if cell.strategy == AGAIN or is_wanted(cell)]
    compared_with = {cell.group for cell in cells + yardsticks if cell.strategy not in ("single", AGAIN)}
    cells += [cell for cell in yardsticks if cell.group in compared_with]

    def told(what: str) -> None:
        print(f"{time.perf_counter() - started:.0f}s {what}", flush=True)

    write_shapes([options.shape], work)
    told(f"wrote {options.shape}")
    shutil.rmtree(work / "gates", ignore_errors=True)
    jobs = {cell.name: job(cell, work, hardware, report) for cell in cells}
    for one in rounds:
        gate = Gate(work / "gates" / one.name, GPUS, ROUND_ENDS)
        jobs[one.name] = Job(one.name, gate, partial(trained, one, work, hardware, gate))

    def may_go_on(wave: int) -> bool:
        return time.perf_counter() - started + WAVE_SECONDS * wave <= float(options.seconds)

    of_name = {cell.name: cell for cell in cells}
    for done, figures in in_waves(waves_of(cells, rounds, jobs), may_go_on, told):
        cell = of_name.get(done.name)
        report["yardsticks" if cell and cell.is_yardstick else "cells"][done.name] = figures
        report["against_plain"] = compared(report)
        write_atomically(out, json.dumps(report, indent=1).replace(f"{work}/", "") + "\n")
        shown = ("step_seconds", "planned", "difference", "memory_gib", "error")
        told(f"{done.name} {json.dumps({key: figures[key] for key in shown if key in figures})}")
    print(json.dumps(report.get("against_plain")))
    return 0


def opened(out: Path, hardware: Hardware, shape: str, length: int) -> dict[str, Any]:
    """Return the report in `out`, or an empty one."""
    report: dict[str, Any] = {
        **measured_with(hardware, "pairs"),
        "gpu_memory_gib": [round(device.memory_gib, 2) for device in hardware.devices],
        "shape": shape,
        "settings": {"lora_r": 16, "learning_rate": LEARNING_RATE, "length": length, "rows_per_device": PER_DEVICE},
        "steps": {"parity": PARITY, "warm_up": WARM_UP, "timed": TIMED},
        "cells": {},
        "yardsticks": {},
    }
    if out.is_file():
        earlier = json.loads(out.read_text(encoding="utf-8"))
        report |= {key: earlier[key] for key in ("cells", "yardsticks", "against_plain") if key in earlier}
    return report


def job(cell: PairCell, work: Path, hardware: Hardware, report: dict[str, Any]) -> Job:
    place = replace(hardware, devices=hardware.devices[cell.device :][:1]) if cell.runs_alone else hardware

    def single() -> dict[str, Any] | None:
        own: dict[str, Any] | None = report["cells"].get(f"{cell.group}-single")
        again = report["yardsticks"].get(f"{cell.group}-{AGAIN}")
        return own if cell.strategy == AGAIN else again or own

    def figures(stopped: threading.Event) -> dict[str, Any]:
        found = measure(cell, work, place, stopped, single_of_group=single, plan_of=planned)
        if "error" in found:
            return found
        if cell.is_yardstick:
            apart = found.get("difference", {})
            if cell.strategy == AGAIN:  # the adapter of the first is no longer there
                apart = {key: apart[key] for key in ("loss", "loss_absolute", "grad_norm", "same_rows") if apart}
            return {key: found[key] for key in ("loss", "grad_norm", "tokens")} | {"difference": apart}
        try:
            return found | beside_the_plan(planned(cell, work, place))
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
        "training": {
            **shared_fields(),
            "per_device_train_batch_size": PER_DEVICE[method],
            "overwrite": True,
            **({"bf16": False} if on_cpu else {}),
        },
        "distributed": {"device": "cpu"} if on_cpu else {},
        "batch": {"on_out_of_memory": "stop", "rehearse": False},
        # A run waits while others take their turns.
        "logging": {"progress": False, "hang_after": 600},
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
    mixed = cell.strategy == CHANCE
    data = work / f"{cell.method}-{cell.rows_per_step}{'-mixed' * mixed}.jsonl"
    chance = random.Random(0)
    parity = [chance.randint(cell.length // 8, cell.length - 1) for _ in range(PARITY * cell.rows_per_step)]
    sizes = parity + [cell.length] * ((steps() - PARITY) * cell.rows_per_step)
    write_answers(data, cell.method, sizes, mixed=cell.per_device if mixed else 0)
    values = values_of(
        cell.method,
        cell.bits,
        work / cell.shape,
        data,
        directory_of(cell, work),
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


def trained(one: Against, work: Path, hardware: Hardware, gate: Gate, stopped: threading.Event) -> dict[str, Any]:
    """Train full pairs by one way, and return losses, gradient norms, and a step's seconds in each round; or the error
    that ended it."""
    on_cpu, rows, count = not hardware.devices, PER_DEVICE["dpo"] * GPUS, ROUND_ENDS[-1]
    data, out = work / f"dpo-full-{one.way}.jsonl", work / "against" / one.name
    write_answers(data, "dpo", [one.length] * rows * count)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths} | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {})
    try:
        if one.way == "plain":
            found = _plain(one, work, data, out, gate, environment, stopped, on_cpu=on_cpu)
        else:
            values = values_of("dpo", 16, work / one.shape, data, out, length=one.length, on_cpu=on_cpu)
            values["training"]["max_steps"] = count
            values["batch"]["global_size"] = rows
            values["distributed"] |= {"strategy": "ddp", "num_processes": GPUS}
            done = gate.train(plan(from_dict(values), hardware), os.environ, stopped)
            found = {"loss": done.loss, "grad_norm": done.grad_norm}
            found["peak_gib"] = max(done.memory("training"), default=None)
        seconds = [gate.seconds()[start] / PLAIN_TIMED for start in ROUND_ENDS[:-1]]
    except Exception as error:  # whatever it is, the other cells are worth having
        return {"error": f"{type(error).__name__}: {error}"[-1500:]}
    return {"rounds": [round(one, 4) for one in seconds], **found}


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
        "max_steps": ROUND_ENDS[-1],
        "per_device_train_batch_size": PER_DEVICE["dpo"],
        "gradient_accumulation_steps": 1,
        # Without it DDP ends the first step under Unsloth's checkpointing: «marked as ready twice».
        "ddp_find_unused_parameters": False,
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


def compared(report: dict[str, Any]) -> dict[str, Any]:
    """Return the ratio of speeds in each round, ours over plain, their median, and how far losses and norms differ; and
    how far ours from ours of an earlier call, if there was one."""
    plain, ours = (report["cells"].get(f"against-{way}", {"error": "not run"}) for way in WAYS)
    if "error" in plain or "error" in ours:
        return {}
    ratios = [round(theirs / own, 4) for theirs, own in zip(plain["rounds"], ours["rounds"], strict=True)]
    again = report["yardsticks"].get(OURS)
    return {
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "loss_absolute": farthest(plain["loss"], ours["loss"]),
        **({"loss_absolute_again": farthest(again["loss"], ours["loss"])} if again else {}),
        "first_grad_norm": largest(plain["grad_norm"][:1], ours["grad_norm"][:1]),
        "grad_norm": largest(plain["grad_norm"], ours["grad_norm"]),
    }


def farthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


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
    return [*lines, *(["", *told] if (told := against_plain(report)) else [])]


def against_plain(report: dict[str, Any]) -> list[str]:
    """Return a sentence on ours against the plain script; nothing where the rounds didn't run."""
    against = report.get("against_plain") or {}
    if not against.get("ratios"):
        return []
    rounds = ", ".join(f"{ratio:.3f}" for ratio in against["ratios"])
    again = against.get("loss_absolute_again")
    apart = f"losses differ by {against['loss_absolute']:.3f} at most"
    apart += f" (ours of two calls by {again:.3f}), " if again is not None else ", "
    apart += f"the first gradient norms by {share(against['first_grad_norm'])}"
    speed = f"DPO by ours is {against['ratio']:.3f} times as fast as the plain script"
    return [f"{speed} (rounds: {rounds}); {apart}."]


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
