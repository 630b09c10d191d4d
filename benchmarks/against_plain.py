"""A step on one GPU as the plan has it, beside Unsloth's default and plain TRL + PEFT: seconds, memory, losses.

    python -m benchmarks.against_plain --out benchmarks/results/against-plain-1xH200.json

8B shape, 16 and 4 bit (plain TRL in 16 bit only), 4 × 2048 tokens, LoRA r=16, fused AdamW, in one call. `planned` keeps
the activations of as many blocks as the plan chooses for this GPU, `default` those of none, as Unsloth does unless it
is told; both in one loaded process (benchmarks.loaded). Plain TRL has a process of its own, which imports no Unsloth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.kept import opened
from benchmarks.loaded import Cell, measured, write_shapes
from benchmarks.regret import Setting
from unsloth_accel.hardware.hardware import Hardware

STEPS, WARM_UP = 9, 3
ROWS, LENGTH = 4, 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shape", default="8B")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    options = parser.parse_args()
    work, out = Path(options.work).resolve(), Path(options.out)
    report = opened(out, "against_plain", {"steps": STEPS, "warm_up_steps": WARM_UP, "runs": {}})
    hardware = Hardware.detect()
    hardware = replace(hardware, devices=hardware.devices[:1])
    write_shapes([options.shape], work)
    ways: dict[Cell, str] = {}
    for load_in_4bit in (False, True):
        setting = Setting(shape=options.shape, load_in_4bit=load_in_4bit, length=LENGTH, rows=ROWS)
        planned = setting.cell(setting.plan(hardware, ROWS))
        bits = "4bit" if load_in_4bit else "16bit"
        ways |= {replace(planned, kept=0): f"default-{bits}", planned: f"planned-{bits}"}
    for cell, figures in measured(list(ways), work, steps=STEPS, warm_up=WARM_UP):
        report["runs"][ways[cell]] = figures
        print(ways[cell], figures.get("median_step_seconds"), figures.get("memory_gib"), flush=True)
    for flags in ([], ["--checkpointing"]):
        name = "plain-checkpointing" if flags else "plain"
        report["runs"][name] = plain(work, options.shape, flags)
        print(name, report["runs"][name].get("median_step_seconds"), flush=True)
    report["ratios"] = ratios(report["runs"])
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["ratios"]))
    return 0


def plain(work: Path, shape: str, flags: list[str]) -> dict[str, Any]:
    """Train by TRL and PEFT alone; returns what that run told, or its error."""
    told = work / "plain.json"
    script = Path(__file__).with_name("plain_trl.py")
    words = [str(work / shape), str(work / f"rows-{LENGTH}.jsonl"), str(ROWS), str(LENGTH), str(STEPS), str(told)]
    done = subprocess.run([sys.executable, str(script), *words, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return found | {"median_step_seconds": round(statistics.median(found["seconds"][WARM_UP:]), 4)}


def table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the ways to train the same rows."""
    lines = ["| way | s/step | GiB | loss of the last step |", "|---|---|---|---|"]
    for name, run in report["runs"].items():
        seconds, gib = run["median_step_seconds"], run["memory_gib"]["training"]
        lines.append(f"| {name} | {seconds:.3f} | {gib:.1f} | {run['loss'][-1]:.3f} |")
    told = [f"{pair} {ratio:.2f}" for pair, ratio in report["ratios"].items()]
    return "\n".join([*lines, "", f"Times as fast: {'; '.join(told)}."])


def ratios(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return how many times as fast the planned step is, by what it is compared with."""
    seconds = {name: run["median_step_seconds"] for name, run in runs.items() if "median_step_seconds" in run}
    pairs = [("planned-16bit", other) for other in ("default-16bit", "plain", "plain-checkpointing")]
    pairs.append(("planned-4bit", "default-4bit"))
    return {f"{own} / {other}": round(seconds[other] / seconds[own], 3) for own, other in pairs if other in seconds}


if __name__ == "__main__":
    sys.exit(main())
