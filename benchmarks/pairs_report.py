"""Put the planner's memory and time of DPO and KTO beside what two GPUs took: the section of docs/preferences.md.

    python -m benchmarks.pairs_report

Reads benchmarks/results/preferences-2xH200.json (`python -m benchmarks.pairs`), which also has what the planner said
before the run, and pair-noise-cpu.json (`python -m benchmarks.pair_noise`).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import pair_noise
from benchmarks.memory_report import HARDWARE
from benchmarks.pairs import AGAIN, CHANCE, against_plain, cells_of, predicted
from benchmarks.random_checkpoint import SHAPES
from benchmarks.tables import RESULTS, ROOT
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.files import filled
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


def section(report: dict[str, Any], noise: dict[str, Any]) -> str:
    """Return parity, where it ends, ours against the plain script, then memory and time, as Markdown."""
    every = [cell.name for cell in cells_of(report["shape"], report["settings"]["length"], on_cpu=False)]
    done = [name for name in every if "error" not in report["cells"].get(name, {"error": ""})]
    missing = [f"`{name}`" for name in every if name not in done]
    plain = against_plain(report)
    missing += [] if plain else ["the rounds against a plain script, so nothing is said here of speed against that"]
    ran = f"{len(done)} of {len(every)} cells ran"
    lines = [
        textwrap.fill("; not run: ".join([ran, *([", ".join(missing)] if missing else [])]) + ".", 120),
        "",
        "Largest differences from one GPU that took the rows of both:",
        "",
        "| run | first gradient norm | loss, absolute | loss | gradient norm | adapter | ranks equal |",
        "|---|---|---|---|---|---|---|",
        *_parity(report),
        "",
        _noise(report, noise),
        "",
        *([*plain, ""] if plain else []),
        "| cell | GiB: planned before | now | measured | error | s/step: planned before | now | measured | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, memory, time in compared(report):
        gib = f"{memory.before:.2f} | {memory.planned:.2f} | {memory.measured:.2f} | {memory.error:+.1%}"
        seconds = f"{time.before:.3f} | {time.planned:.3f} | {time.measured:.3f} | {time.error:+.1%}"
        lines.append(f"| {name} | {gib} | {seconds} |")
    return "\n".join(lines)


def _parity(report: dict[str, Any]) -> Iterator[str]:
    """Yield a row for each cell, and for each other run of one GPU."""
    for name, found in {**report["cells"], **report.get("yardsticks", {})}.items():
        if not found.get("difference"):
            continue
        group, _, strategy = name.rpartition("-")
        single, apart = report["cells"][f"{group}-single"], found["difference"]
        first = share(largest(single["grad_norm"][:1], found["grad_norm"][:1]))
        shares = " | ".join(share(apart[key]) if key in apart else "" for key in ("loss", "grad_norm", "adapter"))
        equal = "" if strategy in (AGAIN, CHANCE) else {True: "yes", False: "NO"}.get(apart.get("ranks_equal"), "")
        yield f"| {name} | {first} | {apart['loss_absolute']:.3f} | {shares} | {equal} |"


def _noise(report: dict[str, Any], noise: dict[str, Any]) -> str:
    """Return what the losses' differences come from, as far as it was measured."""
    apart = {name: found["difference"] for name, found in report["cells"].items() if "difference" in found}
    most = max(one["loss_absolute"] for name, one in apart.items() if name.startswith("dpo"))
    coarse, fine = (noise[precision] for precision in pair_noise.PRECISIONS)
    norms = " and ".join(share(one["first_grad_norm"]) for one in (coarse, fine))
    found = [
        "DPO's first loss is log 2 in every run, since a new adapter is its own reference; the first gradient norms "
        "agree to four digits. Then random words drive the loss from 0.69 to 0.05 in 12 steps, and it is up to "
        f"{most:.3f} off on the way: it goes by sums of log-probabilities over whole answers, which bfloat16 rounds "
        "otherwise as soon as the last bits of the adapter differ. On a CPU, with the same rows in each step and "
        "others of them in its micro-batches, losses of one process differ by "
        f"{coarse['loss_absolute']:.1e} in bfloat16 and by {fine['loss_absolute']:.1e} in float32, first gradient "
        f"norms by {norms} (`python -m benchmarks.pair_noise`: a smaller model, 256 tokens, {pair_noise.STEPS} steps)."
    ]
    if any(name.startswith("kto") for name in apart):
        found.append(METHODS["kto"].depends_on_ranks)
    if report.get("yardsticks"):
        more = "one whose micro-batches have other rows of each step"
        found.append(f"`{AGAIN}` and `{CHANCE}` are one GPU, too: the same run once more, and {more}.")
    else:
        found.append("How far two runs of one GPU differ was not measured, so that this is all of it is inferred.")
    return textwrap.fill(" ".join(found), 120, break_on_hyphens=False)


def written(text: str, report: dict[str, Any]) -> str:
    """Return the page's `text` with its figures replaced by those of `report`."""
    noise = json.loads(pair_noise.RESULT.read_text(encoding="utf-8"))
    return filled(text, MARKS, section(report, noise))


if __name__ == "__main__":
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
