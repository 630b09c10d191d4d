"""Put the planner's predictions beside what was measured: docs/memory.md and docs/speed.md.

python -m benchmarks.memory_report     # writes both from memory-2xH200.json, and kept-1xH200.json, -2xH200 in results/
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import against_plain, kept, regret
from benchmarks.loaded import Cell as LoadedCell
from benchmarks.memory import CALIBRATION, HELD_OUT, Cell
from benchmarks.strategies import ALONE
from unsloth_accel.config.run_config import PROJECTIONS
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.memory_estimate import (
    LEAST_IDLE_GIB,
    MEMORY_LIMIT,
    WORST_ERROR,
    MemoryEstimate,
    Workload,
    estimate,
)
from unsloth_accel.planning.speed_estimate import estimate_speed, launch_seconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory-2xH200.json"
KEPT = {gpus: RESULTS.with_name(f"kept-{gpus}xH200.json") for gpus in (1, 2)}
"""Files by number of GPUs."""
STRATEGIES = RESULTS.with_name("strategies-2xH200.json")
HARDWARE = "2xH200"
GPU_GIB = 139.8
"""What torch says that one of them has."""
LAUNCH_BOUND = 1.1
"""Predicted time of a step over the least that launching its kernels takes, below which a cell is launch-bound."""


@dataclass(frozen=True)
class Measured:
    cell: Cell
    memory: dict[str, float]
    """GiB: training, reserved, and loading where that was measured too."""
    seconds: float
    work: Workload
    predicted: MemoryEstimate
    accumulation: int = 1

    @property
    def allocated(self) -> float:
        return max(self.memory.get("loading", 0.0), self.memory["training"])

    @property
    def error(self) -> float:
        """Of the predicted peak, as a share of the measured one."""
        predicted = self.predicted.allocated if "loading" in self.memory else self.predicted.training
        return predicted / self.allocated - 1

    @property
    def predicted_seconds(self) -> float:
        cell = self.cell
        given = (self.work, cell.strategy, cell.num_processes, self.accumulation)
        speed = estimate_speed(*given, Hardware.parse(HARDWARE), "bf16")
        assert speed is not None
        return speed.step_seconds

    @property
    def time_error(self) -> float:
        return self.predicted_seconds / self.seconds - 1

    @property
    def launch_bound(self) -> bool:
        """Whether its step takes hardly longer than Python takes to launch its kernels."""
        return self.predicted_seconds < LAUNCH_BOUND * launch_seconds(self.work) * self.accumulation

    @property
    def held_error(self) -> float:
        """Of what torch's allocator holds, as a share of what it held."""
        return self.predicted.held / self.memory["reserved"] - 1


def measured(cells: list[Cell]) -> Iterator[Measured]:
    """Those of `cells` that ran."""
    yield from _measured(RESULTS, {cell.name: cell for cell in cells}).values()


def measured_kept(cells: list[LoadedCell]) -> Iterator[Measured]:
    """Those of `cells`, all on as many GPUs, that ran, with the blocks that they keep."""
    yield from _measured(KEPT[cells[0].processes], {cell.name: _alike(cell) for cell in cells}).values()


def _alike(cell: LoadedCell) -> Cell:
    """The same work as a cell of `benchmarks.memory`."""
    return Cell(
        cell.shape,
        cell.strategy,
        cell.per_device,
        cell.length,
        load_in_4bit=cell.load_in_4bit,
        num_processes=cell.processes,
        kept=cell.kept,
    )


def _measured(file: Path, cells: dict[str, Cell]) -> dict[str, Measured]:
    measured = {}
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cells": {}}
    for name, cell in cells.items():
        found = report["cells"].get(name, {})
        if "memory_gib" not in found:
            continue
        work = workload(cell, report["shapes"][cell.shape])
        predicted = estimate(work, cell.strategy, cell.num_processes, free_gib=report["gpu_memory_gib"])
        left = found.get("left_gib", 0.0)  # on the GPU by the cells before, in one process with it
        memory = {key: value - left for key, value in found["memory_gib"].items()}
        measured[name] = Measured(cell, memory, found["median_step_seconds"], work, predicted)
    return measured


def workload(cell: Cell, shape: dict[str, Any]) -> Workload:
    config = {"model_type": "llama", "tie_word_embeddings": False, "dtype": "bfloat16", **shape}
    spec = from_config(config, name=cell.shape)
    return Workload(
        spec=spec,
        lora_parameters=spec.lora_parameters(PROJECTIONS, cell.r),
        per_device=cell.per_device,
        length=cell.length,
        checkpointing=cell.checkpointing,
        keep_activations=cell.kept,
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
    words += [f"{cell.kept} blocks kept"] if cell.kept else []
    words += [] if cell.checkpointing == "unsloth" else [f"checkpointing {cell.checkpointing}"]
    words += [f"r={cell.r}"] if cell.r != 16 else []
    return ", ".join(words + ([cell.optim] if cell.optim != "adamw_torch" else []))


def memory_page() -> str:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    return f"""# Memory: predicted and measured

What `unsloth-accel plan` and `estimate` predict, beside what runs took: GiB allocated by
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

{kept_section(_MEMORY_BY_KEPT, lambda found: (found.predicted.training, found.allocated))}
## Beside the peak

A plan adds what torch's allocator holds beyond what it has given out ({_fragmentation()})
and CUDA's context (0.8 GiB for one process, 2.3 GiB with NCCL on NVLink), and leaves the larger of
{1 - MEMORY_LIMIT:.0%} and {LEAST_IDLE_GIB:g} GiB of what is free on a GPU.
What the allocator held was at worst {_worst_held()} off.
A strategy that is asked for by name is refused where the estimate less {WORST_ERROR:.0%} is more than the GPU has; in
between it is planned with a warning that has both figures.
{_beside_rivals()}
Other cards were not measured, nor more than two GPUs; for these the same shares are assumed. Mixtures of experts and
other families were compared at one shape each ([gpu-checks.md](gpu-checks.md)).
`fsdp1` was not measured: its run trained and then could not save an adapter (see the file's notes); its estimate is
that of plain sharding, after the whole model was loaded on every GPU. `fsdp2` is as docs/fsdp2.md describes it.
"""


def by_rivals() -> dict[str, Measured]:
    """Return the cells of `benchmarks.regret` on two GPUs, to which no memory was fitted, by their names."""
    report = json.loads(RESULTS.with_name("regret-2xH200.json").read_text(encoding="utf-8"))
    measured = {}
    for name, found in _that_ran(report).items():
        given = LoadedCell(**found["cell"])
        cell = _alike(given)
        work = workload(cell, report["shapes"][cell.shape])
        predicted = estimate(work, cell.strategy, cell.num_processes, free_gib=given.limit_gib or GPU_GIB)
        seconds = found["median_step_seconds"]
        measured[name] = Measured(cell, found["memory_gib"], seconds, work, predicted, given.accumulation)
    return measured


def _that_ran(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the cells of all settings of a report of `benchmarks.regret` that ran, by their names."""
    settings = report["settings"].values()
    return {name: cell for one in settings for name, cell in one["cells"].items() if "median_step_seconds" in cell}


def _beside_rivals() -> str:
    found = by_rivals()
    errors = {name: one.error for name, one in found.items()}
    worst = max(errors, key=lambda name: abs(errors[name]))
    return f"""In the {len(errors)} cells of `benchmarks/results/regret-2xH200.json` the peak was off by
{statistics.median(map(abs, errors.values())):.1%} at the median and {abs(errors[worst]):.1%} at worst ({worst})."""


_MEMORY_BY_KEPT = """\
GiB allocated at the peak of training, less what the process held of the cells before (a copy of the adapter, Unsloth's
buffers)."""
_SECONDS_BY_KEPT = """\
Seconds of a step. Where few tokens are computed at once, a step takes as long as Python launches its kernels, and the
steps of one cell differ by a quarter."""


def kept_section(what: str, figures: Callable[[Measured], tuple[float, float]]) -> str:
    """Return the section on the cells in which blocks keep their activations: `figures` predicted and measured."""
    on_one = _kept_on(1, what, figures, kept.HELD_OUT, kept.CALIBRATION)
    on_two = _kept_on(2, what, figures, kept.HELD_OUT_ON_TWO, kept.CALIBRATION_ON_TWO)
    return "\n".join(section for section in (on_one, strategies_section(what, figures), on_two) if section)


def by_strategies() -> Iterator[Measured]:
    """Those of benchmarks.strategies on two GPUs, to which nothing was fitted; not `single`, which accumulates."""
    report = json.loads(STRATEGIES.read_text(encoding="utf-8"))
    for found in report["cells"].values():
        given = found["cell"]
        if "memory_gib" not in found or given["strategy"] == "single":
            continue
        alone = given["strategy"] in ALONE
        cell = Cell(
            given["shape"],
            "single" if alone else given["strategy"],
            given["per_device"],
            report["settings"]["length"],
            load_in_4bit=given["bits"] == 4,
            num_processes=1 if alone else given["processes"],
            kept=given["kept"],
            optim=found["optim"],
        )
        work = workload(cell, report["shapes"][cell.shape])
        predicted = estimate(work, cell.strategy, cell.num_processes, free_gib=GPU_GIB)
        memory = {phase: max(found["memory_gib"][phase]) for phase in ("loading", "training")}
        yield Measured(cell, memory, found["step_seconds"], work, predicted)


def strategies_section(what: str, figures: Callable[[Measured], tuple[float, float]]) -> str:
    """Return the section on the strategies with several numbers of kept blocks, side by side on two GPUs."""
    lines = [
        "## By blocks that keep their activations, by strategy",
        "",
        f"{what} {_where(json.loads(STRATEGIES.read_text(encoding='utf-8')))}",
        f"Nothing was fitted to these cells, of `benchmarks/results/{STRATEGIES.name}`.",
        "",
        "| cell | strategy, GPUs | predicted | measured | error |",
        "|---|---|---|---|---|",
    ]
    errors = []
    for found in by_strategies():
        predicted, actual = figures(found)
        errors.append(abs(predicted / actual - 1))
        on = f"{found.cell.strategy}, {found.cell.num_processes}"
        lines.append(f"| {title(found.cell)} | {on} | {predicted:.3f} | {actual:.3f} | {predicted / actual - 1:+.1%} |")
    told = f"Error of {len(errors)} cells: median {statistics.median(errors):.1%}, worst {max(errors):.1%}."
    return "\n".join([*lines, "", told, ""])


def _kept_on(
    gpus: int,
    what: str,
    figures: Callable[[Measured], tuple[float, float]],
    held_out: list[LoadedCell],
    calibration: list[LoadedCell],
) -> str:
    """Return the section of so many GPUs; empty where nothing was measured on them."""
    if not KEPT[gpus].is_file():
        return ""
    report = json.loads(KEPT[gpus].read_text(encoding="utf-8"))
    flag = f" --gpus {gpus}" if gpus > 1 else ""
    lines = [
        "## By blocks that keep their activations" + (f", on {gpus} GPUs" if gpus > 1 else ""),
        "",
        f"{what} {_where(report)}",
        f"Every second cell of a model was held out, and nothing fitted to it (`python -m benchmarks.kept{flag}`).",
        "",
        "| cell | held out | predicted | measured | error |",
        "|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {"held out": [], "": []}
    for held, cells in (("held out", held_out), ("", calibration)):
        for found in measured_kept(cells):
            predicted, actual = figures(found)
            errors[held].append(abs(predicted / actual - 1))
            error = f"{predicted / actual - 1:+.1%}"
            name = title(found.cell) + (f", {found.cell.strategy}" if gpus > 1 else "")
            lines.append(f"| {name} | {held} | {predicted:.3f} | {actual:.3f} | {error} |")
    told = [
        f"{len(values)} cells that were {'held out' if held else 'not'}: median {statistics.median(values):.1%}, "
        f"worst {max(values):.1%}"
        for held, values in errors.items()
        if values
    ]
    return "\n".join([*lines, "", f"Error of {'; of '.join(told)}.", ""])


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
            cell, seconds = found.cell, found.predicted_seconds
            tokens = found.work.tokens * cell.num_processes
            errors.append((abs(found.time_error), f"{name}, {cell.strategy}"))
            rows.append((cell, tokens / seconds, tokens / found.seconds, seconds, found.seconds))
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

{kept_section(_SECONDS_BY_KEPT, lambda found: (found.predicted_seconds, found.seconds))}
## Where the estimate is weak

{_launch_bound()}
{plain_section()}
{regret_section()}"""


def plain_section() -> str:
    """Return the section on the planned step beside plain ones."""
    report = json.loads(RESULTS.with_name("against-plain-1xH200.json").read_text(encoding="utf-8"))
    return f"""## The planned step beside plain ones

8B, 4 × 2048 tokens on one GPU, in one call. `default` is Unsloth's, in which every block recomputes; `plain` is TRL and
PEFT without Unsloth. {_where(report)} Made by `{report["command"]}`.

{against_plain.table(report)}

Plain TRL draws the rows in another order and doesn't warm up, so its losses say nothing here; those of `default` and
`planned` are of the same rows.
"""


def regret_section() -> str:
    """Return the section on what the plan chooses beside its rivals."""
    on_two = RESULTS.with_name("regret-2xH200.json")
    report = json.loads(RESULTS.with_name("regret-1xH200.json").read_text(encoding="utf-8"))
    return f"""## What the plan chooses, beside its nearest rivals

Cards are stood in for by limiting torch's allocator; regret is the chosen step's time over the fastest one's.
{_where(report)} Made by `python -m benchmarks.regret`. {report["note"]}

{regret.table(report)}

The largest regret of {len(report["settings"])} settings is {report["regret"]:.3f}.
{_regret_on_two(json.loads(on_two.read_text(encoding="utf-8"))) if on_two.is_file() else ""}"""


def _regret_on_two(report: dict[str, Any]) -> str:
    return f"""
On two GPUs, where the fastest plan by another strategy is a rival, too. {_where(report)} Made by
`python -m benchmarks.regret --gpus 2`.

{regret.table(report)}

The largest regret of {len(report["settings"])} settings is {report["regret"]:.3f}. {report["note"]}
One constant of launching was fitted to these cells, two of fsdp2 to those of the second host. Losses of a setting's
cells, which train the same rows, differ by at most {_losses_apart(report):.0e} of themselves.
{_between_hosts(report)}
"""


def _losses_apart(report: dict[str, Any]) -> float:
    """Return the largest difference of two cells' losses in one step of a setting, as a share of the loss."""
    apart = 0.0
    for one in report["settings"].values():
        losses = [cell["loss"] for cell in one["cells"].values() if "loss" in cell]
        apart = max([apart, *((max(step) - min(step)) / min(step) for step in zip(*losses, strict=True))])
    return apart


def _between_hosts(report: dict[str, Any]) -> str:
    """Return by how much cells of `report` differ from themselves on other hosts."""
    reports = [report]
    for path in sorted(RESULTS.parent.glob("regret-2xH200-*-host.json")):
        reports.append(json.loads(path.read_text(encoding="utf-8")))
    found: dict[str, list[float]] = {}
    for each in reports:
        for name, cell in _that_ran(each).items():
            found.setdefault(name, []).append(cell["median_step_seconds"])
    ratios = sorted((max(own) / min(own), name) for name, own in found.items() if len(own) > 1)
    ratio, worst = ratios[-1]
    times = ", ".join(f"{seconds:.2f} s" for seconds in found[worst])
    return (
        f"Which of two close plans is faster depends on the host: of {len(ratios)} cells that machines of the same "
        f"kind trained in {len(reports)} calls, one took {ratio:.2f} times as long on one of them ({worst}: {times}), "
        f"the middle one {statistics.median(one for one, _ in ratios):.2f} times. Small batches wait for Python, and "
        "its speed is the host's."
    )


def _launch_bound() -> str:
    """Return the errors of the launch-bound cells and of all others."""
    cells = [*measured([*CALIBRATION, *HELD_OUT]), *measured_kept(kept.CELLS)]
    few = [abs(found.time_error) for found in cells if found.launch_bound]
    others = [abs(found.time_error) for found in cells if not found.launch_bound]
    return f"""Few tokens at once: a step then takes as long as Python launches its kernels, which depends on the
machine's processor and differs from run to run. {len(few)} of the {len(cells)} cells are such, predicted within
{LAUNCH_BOUND - 1:.0%} of the least time that launching takes: off by {statistics.median(few):.1%} at the median and
{max(few):.1%} at worst. The other {len(others)} are off by {statistics.median(others):.1%} at the median and
{max(others):.1%} at worst. The first were measured on several hosts; those of
`benchmarks/results/memory-2xH200.json` on one that launched faster than most.
"""


def main() -> None:
    for name, text in (("memory.md", memory_page()), ("speed.md", speed_page())):
        path = ROOT / "docs" / name
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
