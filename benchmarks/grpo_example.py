"""Train examples/configs/grpo.yaml in two CPU processes, once per seed, and write what it learned into docs/rewards.md.

    python -m benchmarks.grpo_example [--seeds 1 2 3]   (adds to benchmarks/results/grpo-cpu.json)
    python -m benchmarks.grpo_example --table           (docs/rewards.md, of that file)

Processor seconds are those of both processes from their start to their end; half of them is how long the run takes on
two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, ROOT
from unsloth_accel.artifacts.run_directory import RunDirectory
from unsloth_accel.errors import shortened
from unsloth_accel.files import filled, read_json, write_atomically
from unsloth_accel.report.run_record import read_lines, read_run_record

RESULT = RESULTS / "grpo-cpu.json"
PAGE = ROOT / "docs" / "rewards.md"
CONFIG = ROOT / "examples" / "configs" / "grpo.yaml"
SEEDS = (1, 2, 3)
MARKS = ("<!-- learned -->", "<!-- /learned -->")
EVERY = 3
"""Steps between those of the curve that are shown."""
FIGURES = ("step", "reward", "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std")


def train(seed: int, directory: Path) -> dict[str, Any]:
    """Launch the example in two processes with this seed, and return its figures, curve and some completions."""
    words = [f"output_dir={directory}", f"training.seed={seed}", f"lora.random_state={seed}"]
    words += ["distributed.device=cpu", "distributed.num_processes=2", "logging.progress=false"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(CONFIG), *words]
    # A process per core: more threads would only wait for each other.
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = read_run_record(directory)
    written = list(read_lines(RunDirectory(directory).completions))
    last = max(line["step"] for line in written)
    return {
        "before": run.results["before"],
        "after": run.results["after"],
        "rewards": run.results["rewards"],
        "steps": run.results["training"]["steps"],
        "processes": run.results["training"]["processes"],
        "global_batch_size": run.results["training"]["global_batch_size"],
        "seconds": run.results["training"]["seconds"],
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "curve": [{name: step[name] for name in step if _is_shown(name)} for step in run.steps],
        "completions": [line for line in written if line["step"] in (1, last)],
        "versions": run.results["versions"],
    }


def _is_shown(name: str) -> bool:
    return name in FIGURES or (name.startswith("rewards/") and name.endswith("/mean"))


def table(report: dict[str, Any]) -> str:
    """Return what was learned with each seed, the first one's curve, and completions of its first and last step."""
    lines = ["| seed | held-out reward | steps of completions | processor seconds |", "|---|---|---|---|"]
    for seed, found in report.items():
        reward = f"{found['before']['reward']:.3f} → {found['after']['reward']:.3f}"
        steps = f"{found['steps']} of {found['global_batch_size']}"
        lines.append(f"| {seed} | {reward} | {steps} | {found['processor_seconds']:.0f} |")
    first = next(iter(report.values()))
    lines += ["", "The first of them while it trains:", "", *_curve(first["curve"]), ""]
    lines += ["Completions of its first and its last step:", "", "| step | question | completion | rewards |"]
    return "\n".join([*lines, "|---|---|---|---|", *_completions(first["completions"])])


def _curve(curve: list[dict[str, Any]]) -> Iterator[str]:
    shown = [step for step in curve if step["step"] == 1 or step["step"] % EVERY == 0]
    yield "| step | " + " | ".join(str(step["step"]) for step in shown) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name in ("reward", *(one for one in shown[0] if one.startswith("rewards/"))):
        title = name.removeprefix("rewards/").removesuffix("/mean")
        yield f"| {title} | " + " | ".join(f"{float(step[name]):.2f}" for step in shown) + " |"


def _completions(lines: list[dict[str, Any]]) -> Iterator[str]:
    for line in lines:
        question = " ".join(line["prompt"].rpartition("\n\n")[2].split())  # without the system's message
        said = shortened(line["completion"].replace("\n", "↵").replace("|", "\\|"), 80)
        rewards = ", ".join(f"{value:g}" for value in line["rewards"].values())
        yield f"| {line['step']} | {question} | {said} | {rewards} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    for seed in () if asked.table else asked.seeds:
        with tempfile.TemporaryDirectory() as directory:
            found = train(seed, Path(directory, "run"))
        write_atomically(RESULT, json.dumps({**read_json(RESULT), str(seed): found}, indent=1) + "\n")
    if asked.table:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), MARKS, table(read_json(RESULT))), encoding="utf-8")


if __name__ == "__main__":
    main()
