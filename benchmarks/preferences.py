"""Train the examples of preferences on a CPU, and write what they learned into docs/preferences.md.

    python -m benchmarks.preferences [--methods dpo reward]   (adds to benchmarks/results/preferences-cpu.json)
    python -m benchmarks.preferences --table                  (docs/preferences.md, of that file)

Processor seconds are those of all threads of the run, from the launch to its end: what another program on the machine
takes doesn't count in them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, ROOT
from unsloth_accel.files import filled, read_json, write_atomically
from unsloth_accel.methods import METHODS
from unsloth_accel.report.run_record import read_run_record

RESULT = RESULTS / "preferences-cpu.json"
PAGE = ROOT / "docs" / "preferences.md"
EXAMPLES = ("dpo", "kto", "reward")
MARKS = ("<!-- learned -->", "<!-- /learned -->")
EVERY = 3
"""Steps between those of the curve that are shown."""


def train(method: str, directory: Path) -> dict[str, Any]:
    """Launch the method's example in one process, and return its figures and curve."""
    words = [f"output_dir={directory}", "distributed.device=cpu", "distributed.num_processes=1"]
    config = ROOT / "examples" / "configs" / f"{method}.yaml"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "unsloth_accel.cli", "launch", str(config), *words, "logging.progress=false"]
    subprocess.run(command, cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = read_run_record(directory)
    names = ("step", "loss", *METHODS[method].charts)
    return {
        "before": run.results["before"],
        "after": run.results["after"],
        "steps": run.results["training"]["steps"],
        "global_batch_size": run.results["training"]["global_batch_size"],
        "seconds": run.results["training"]["seconds"],
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "curve": [{name: step[name] for name in names if name in step} for step in run.steps],
        "versions": run.results["versions"],
    }


def table(report: dict[str, Any]) -> str:
    """Return what was learned, and the curve, as Markdown."""
    report = {method: report[method] for method in EXAMPLES if method in report}
    lines = [
        "| method | held-out loss | held-out pairs that the chosen answer wins | steps of rows | processor seconds |",
        "|---|---|---|---|---|",
    ]
    for method, found in report.items():
        before, after = found["before"], found["after"]
        wins = "not asked by KTO"
        if "pair_accuracy" in after:
            wins = f"{before['pair_accuracy']:.1%} → {after['pair_accuracy']:.1%}"
        loss = f"{before['loss']:.4f} → {after['loss']:.4f}"
        steps = f"{found['steps']} of {found['global_batch_size']}"
        lines.append(f"| `{method}` | {loss} | {wins} | {steps} | {found['processor_seconds']:.0f} |")
    for method, found in report.items():
        shown = [step for step in found["curve"] if step["step"] == 1 or step["step"] % EVERY == 0]
        lines += ["", f"`{method}` while it trains:", ""]
        lines += ["| step | " + " | ".join(str(step["step"]) for step in shown) + " |", "|---" * (len(shown) + 1) + "|"]
        for name, title in {"loss": "Loss", **METHODS[method].charts}.items():
            values = (f"{float(step[name]):.3f}" if name in step else "" for step in shown)
            lines.append(f"| {title.lower()} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=EXAMPLES, choices=EXAMPLES)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    for method in () if asked.table else asked.methods:
        with tempfile.TemporaryDirectory() as directory:
            found = train(method, Path(directory, method))
        write_atomically(RESULT, json.dumps({**read_json(RESULT), method: found}, indent=1) + "\n")
    if asked.table:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), MARKS, table(read_json(RESULT))), encoding="utf-8")


if __name__ == "__main__":
    main()
