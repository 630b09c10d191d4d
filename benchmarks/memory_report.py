"""Put the planner's predictions beside what was measured: docs/memory.md and docs/speed.md.

python -m benchmarks.memory_report          # writes both from benchmarks/results/memory-2xH200.json
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import CALIBRATION, HELD_OUT, Cell
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.memory_estimate import WORST_ERROR, MemoryEstimate, Workload, estimate
from unsloth_accel.planning.speed_estimate import estimate_speed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory-2xH200.json"
HARDWARE = "2xH200"


@dataclass(frozen=True)
class Measured:
    cell: Cell
    memory: dict[str, float]
    """GiB: loading, training, reserved."""
    seconds: float
    work: Workload
    predicted: MemoryEstimate

    @property
    def allocated(self) -> float:
        return max(self.memory["loading"], self.memory["training"])

    @property
    def error(self) -> float:
        """Of the predicted peak, as a share of the measured one."""
        return self.predicted.allocated / self.allocated - 1

    @property
    def held_error(self) -> float:
        """Of what torch's allocator holds, as a share of what it held."""
        return self.predicted.held / self.memory["reserved"] - 1


def measured(cells: list[Cell]) -> Iterator[Measured]:
    """Those of `cells` that ran."""
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    for cell in cells:
        found = report["cells"].get(cell.name, {})
        if "memory_gib" not in found:
            continue
        work = workload(cell, report["shapes"][cell.shape])
        predicted = estimate(work, cell.strategy, cell.num_processes, free_gib=report["gpu_memory_gib"])
        yield Measured(cell, found["memory_gib"], found["median_step_seconds"], work, predicted)


def workload(cell: Cell, shape: dict[str, Any]) -> Workload:
    config = {"model_type": "llama", "tie_word_embeddings": False, "dtype": "bfloat16", **shape}
    spec = from_config(config, name=cell.shape)
    return Workload(
        spec=spec,
        lora_parameters=spec.lora_parameters(PROJECTIONS, cell.r),
        per_device=cell.per_device,
        length=cell.length,
        checkpointing=cell.checkpointing,
        load_in_4bit=cell.load_in_4bit,
        optim=cell.optim,
    )


def memory_table(cells: list[Measured]) -> str:
    lines = [
        "| cell | strategy, GPUs | loading: predicted / measured | training: predicted / measured | peak |",
        "|---|---|---|---|---|",
    ]
    for found in cells:
        cell, memory, predicted = found.cell, found.memory, found.predicted
        lines.append(
            f"| {title(cell)} | {cell.strategy}, {cell.num_processes} | {predicted.loading:.2f} / "
            f"{memory['loading']:.2f} | {predicted.training:.2f} / {memory['training']:.2f} | {found.error:+.1%} |"
        )
    errors = [abs(found.error) for found in cells]
    lines += ["", f"Error of the peak: median {statistics.median(errors):.1%}, worst {max(errors):.1%}."]
    return "\n".join(lines)


def title(cell: Cell) -> str:
    words = [cell.shape + (" in 4 bit" if cell.load_in_4bit else ""), f"{cell.per_device} × {cell.length}"]
    words += [] if cell.checkpointing == "unsloth" else [f"checkpointing {cell.checkpointing}"]
    words += [f"r={cell.r}"] if cell.r != 16 else []
    return ", ".join(words + ([cell.optim] if cell.optim != "adamw_torch" else []))


def memory_page() -> str:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    return f"""# Memory: predicted and measured

What `unsloth-accel plan` and `estimate` predict, beside what runs of `unsloth-accel launch` took: GiB allocated by
torch on each GPU at the peak of loading (sharding included) and of training. {_where(report)}
Random weights, full rows, LoRA on all seven projections (r=16 unless said), AdamW, Unsloth's checkpointing unless said;
Llama shapes of 1.5B, 3B and 8B, Qwen2.5's 0.5B, Qwen3's 4B.

Made by `python -m benchmarks.memory_report` from `benchmarks/results/memory-2xH200.json`, which
`python -m benchmarks.memory` wrote. The formulas and their sources are in `unsloth_accel/planning/memory_estimate.py`.

## Cells that were not used to calibrate

Measured after the constants were fixed.

{memory_table(list(measured(HELD_OUT)))}

## Cells that were

{memory_table(list(measured(CALIBRATION)))}

## Beside the peak

A plan adds what torch's allocator holds beyond what it has given out ({_fragmentation()})
and CUDA's context (0.8 GiB for one process, 2.3 GiB with NCCL on NVLink), and fills 95 % of a GPU.
What the allocator held was at worst {_worst_held()} off.
A strategy that is asked for by name is refused where the estimate less {WORST_ERROR:.0%} is more than the GPU has; in
between it is planned with a warning that has both figures.
Other cards were not measured, nor mixtures of experts, nor more than two GPUs; for these the same shares are assumed.
`fsdp1` was not measured: its run trained and then could not save an adapter (see the file's notes); its estimate is
that of plain sharding, after the whole model was loaded on every GPU. `fsdp2` is as docs/fsdp2.md describes it.
"""


def _worst_held() -> str:
    worst = max(measured([*CALIBRATION, *HELD_OUT]), key=lambda found: abs(found.held_error))
    return f"{abs(worst.held_error):.1%} ({title(worst.cell)}, {worst.cell.strategy})"


def _fragmentation() -> str:
    ratios: dict[str, list[float]] = {}
    for found in measured([*CALIBRATION, *HELD_OUT]):
        ratio = found.memory["reserved"] / found.memory["training"] - 1
        ratios.setdefault(found.cell.strategy, []).append(ratio)
    shares = [f"{name} {statistics.median(values):.0%}" for name, values in ratios.items()]
    return f"measured medians: {', '.join(shares)}"


def _where(report: dict[str, Any]) -> str:
    found = report["versions"]
    gpu = f"{len(report['gpu'])} × {report['gpu'][0]}"
    names = ("torch", "unsloth", "transformers", "accelerate")
    return f"{gpu}, {', '.join(f'{name} {found[name]}' for name in names)}; {report['date']}."


def speed_page() -> str:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    hardware = Hardware.parse(HARDWARE)
    groups: dict[str, list[Measured]] = {}
    for found in measured([*CALIBRATION, *HELD_OUT]):
        groups.setdefault(title(found.cell), []).append(found)
    lines = [
        "| work | strategy | predicted s/step | measured s/step | tokens/s measured | order predicted | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    agree = total = 0
    errors: list[tuple[float, str]] = []
    for name, members in groups.items():
        rows = []
        for found in members:
            cell = found.cell
            speed = estimate_speed(found.work, cell.strategy, cell.num_processes, 1, hardware, "bf16")
            assert speed is not None
            errors.append((abs(speed.step_seconds / found.seconds - 1), f"{name}, {cell.strategy}"))
            rows.append(
                (cell, speed.tokens_per_second, speed.tokens / found.seconds, speed.step_seconds, found.seconds)
            )
        if len(rows) < 2:
            continue
        predicted = sorted(rows, key=lambda row: -row[1])
        actual = sorted(rows, key=lambda row: -row[2])
        for row in actual:
            lines.append(
                f"| {name} | {row[0].strategy}, {row[0].num_processes} GPU{'s' * (row[0].num_processes > 1)} | "
                f"{row[3]:.3f} | {row[4]:.3f} | {row[2]:,.0f} | {predicted.index(row) + 1} | {actual.index(row) + 1} |"
            )
        total += 1
        agree += predicted == actual
    median = statistics.median(error for error, _ in errors)
    worst, where = max(errors)
    return f"""# Speed: the planner's order and the measured one

Which strategy the planner holds to be faster, beside runs with as many rows on each GPU. {_where(report)}
Medians after {report["warm_up_steps"]} of {report["steps"]} steps, full rows.
The constants of `unsloth_accel/planning/speed_estimate.py` were fitted to the calibration cells of the same file, so
the seconds are no independent test; the order is what the planner uses.

Made by `python -m benchmarks.memory_report` from `benchmarks/results/memory-2xH200.json`.

{chr(10).join(lines)}

The order agrees in {agree} of {total} groups. Over all {len(errors)} cells the step time is off by
{median:.1%} at the median and {worst:.0%} at worst ({where}).
"""


def main() -> None:
    for name, text in (("memory.md", memory_page()), ("speed.md", speed_page())):
        path = ROOT / "docs" / name
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
