"""Put the planner's memory and time of DPO and KTO beside what two GPUs took: the section of docs/preferences.md.

    python -m benchmarks.pairs_report

Reads benchmarks/results/preferences-2xH200.json (`python -m benchmarks.pairs`), which also has what the planner said
before the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.memory_report import HARDWARE
from benchmarks.pairs import cells_of, predicted
from benchmarks.random_checkpoint import SHAPES
from benchmarks.tables import RESULTS, ROOT
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.methods import METHODS
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.memory_estimate import Workload, estimate
from unsloth_accel.planning.speed_estimate import estimate_speed
from unsloth_accel.verify.verdict import largest, share

RESULT = RESULTS / "preferences-2xH200.json"
PAGE = ROOT / "docs" / "preferences.md"
MARKS = ("<!-- pairs -->", "<!-- /pairs -->")


@dataclass(frozen=True)
class Figures:
    """GiB that torch allocated on the fullest GPU, or seconds of a step."""

    before: float
    """As the planner said before the run."""
    planned: float
    """As it says now."""
    measured: float

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def compared(report: dict[str, Any]) -> Iterator[tuple[str, Figures, Figures]]:
    """Yield the name of each cell that ran, its memory and its time."""
    for name, found in report["cells"].items():
        pairs = predicted(found)
        if not pairs:
            continue
        cell, (memory, time) = found["cell"], pairs
        work = workload(cell, report["settings"]["lora_r"])
        alone = cell["strategy"] == "single"
        count, accumulation = (1, cell["processes"]) if alone else (cell["processes"], 1)
        hardware = Hardware.parse(HARDWARE)
        speed = estimate_speed(work, cell["strategy"], count, accumulation, hardware, "bf16")
        assert speed is not None
        allocated = estimate(work, cell["strategy"], count, free_gib=report["gpu_memory_gib"][0]).allocated
        yield name, Figures(memory[0], allocated, memory[1]), Figures(time[0], speed.step_seconds, time[1])


def workload(cell: dict[str, Any], rank: int) -> Workload:
    """Return the work of one process in `cell`, as the planner counts it for full rows."""
    method = METHODS[cell["method"]]
    shape = {"model_type": "llama", "tie_word_embeddings": False, "dtype": "bfloat16", **SHAPES[cell["shape"]]}
    spec = from_config(shape, name=cell["shape"])
    return Workload(
        spec=spec,
        lora_parameters=spec.lora_parameters(PROJECTIONS, rank),
        per_device=cell["per_device"],
        length=cell["length"],
        sequences_per_row=method.sequences_per_row,
        reference_passes=method.reference_passes + method.other_passes,
        logits=method.logits,
        pads=method.pads,
        keep_activations=cell["kept"],
        load_in_4bit=cell["bits"] == 4,
        optim="adamw_torch_fused",
    )


def section(report: dict[str, Any]) -> str:
    """Return parity, then memory and time, as Markdown."""
    planned = len(cells_of(report["shape"], report["settings"]["length"], on_cpu=False))
    lines = [
        f"{len(report['cells'])} of {planned} cells ran. Largest differences from one GPU that took the rows of both:",
        "",
        "| cell | first gradient norm | loss, absolute | loss | gradient norm | adapter | ranks equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report["cells"].items():
        if "difference" not in found:
            continue
        single = report["cells"][f"{name.rpartition('-')[0]}-single"]
        apart = found["difference"]
        first = largest(single["grad_norm"][:1], found["grad_norm"][:1])
        shares = " | ".join(share(apart[key]) for key in ("loss", "grad_norm", "adapter"))
        equal = "yes" if apart["ranks_equal"] else "NO"
        lines.append(f"| {name} | {share(first)} | {apart['loss_absolute']:.3f} | {shares} | {equal} |")
    lines += [
        "",
        "| cell | GiB: planned before | now | measured | error | s/step: planned before | now | measured | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, memory, time in compared(report):
        gib = f"{memory.before:.2f} | {memory.planned:.2f} | {memory.measured:.2f} | {memory.error:+.1%}"
        seconds = f"{time.before:.3f} | {time.planned:.3f} | {time.measured:.3f} | {time.error:+.1%}"
        lines.append(f"| {name} | {gib} | {seconds} |")
    return "\n".join(lines)


def filled(text: str, report: dict[str, Any]) -> str:
    """Return the page's `text` with its figures replaced by those of `report`."""
    body = f"{MARKS[0]}\n{section(report)}\n{MARKS[1]}"
    return re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: body, text, flags=re.DOTALL)


if __name__ == "__main__":
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
