"""Page of benchmarks.strategies: a table per number of GPUs, shape and precision, and one of all numbers of GPUs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.strategies import ALONE, CELLS, Cell, name_of
from unsloth_accel.verify.verdict import largest

HEADER = (
    *("strategy", "s/step", "tokens/s", "× one GPU", "of linear", "loss", "grad norm", "adapter"),
    *("loading GiB", "training GiB"),
)


KEPT_HEADER = ("blocks kept", "of ddp")
"""Columns more where blocks keep their activations."""


INTRODUCTION = """\
# Every strategy against one GPU

{known}, {date}. Random weights, LoRA r=16, bf16;
made by `python -m benchmarks.strategies`.

`single` is one GPU that takes the rows of all in accumulation steps: {parity} steps on rows of {shortest} to
{longest} tokens, then {full} on full ones, of which the last {timed} are timed (medians). The differences of
loss and gradient norm are the largest of all these steps, relative to it; the adapter's is the distance between the two
at the end, as a share of how far that of one GPU has moved. *× one GPU* is throughput on full rows over that of
`single`; *of linear* is over that of as many GPUs that each train alone, without accumulation. Memory is the peak of
torch's allocator and of the rows in shared memory, on the fullest GPU.{kept}"""
KEPT = """
Where *blocks kept* is told, so many decoder blocks keep their activations, and the rest recompute; `single` and
`alone` keep none, as Unsloth does unless it is told, so that *× one GPU* and *of linear* are over Unsloth's default.
*of ddp* is throughput over ddp's with as many blocks kept."""


def page(*reports: dict[str, Any]) -> str:
    """docs/strategies.md: a table per number of GPUs, shape and precision, and one of all numbers of GPUs."""
    reports = tuple(sorted(reports, key=lambda report: len(report["gpu"])))
    newest = reports[-1]
    known = ", ".join(f"{name} {newest['versions'][name]}" for name in ("torch", "unsloth", "accelerate", "trl"))
    known = "; ".join(f"{len(report['gpu'])} × {report['gpu'][0]}" for report in reports) + f", {known}"
    steps, longest = newest["steps"], newest["settings"]["length"]
    full = steps["warm_up"] + steps["timed"]
    numbers: dict[str, Any] = {"parity": steps["parity"], "full": full, "timed": steps["timed"]}
    numbers |= {"shortest": longest // 8, "longest": longest}
    keeping = any(figures.get("cell", {}).get("kept") for report in reports for figures in report["cells"].values())
    numbers["kept"] = KEPT if keeping else ""
    lines = [INTRODUCTION.format(known=known, date=newest["date"], **numbers)]
    if len(reports) > 1:
        lines += ["", "## Scaling", "", *scaling(reports)]
    for report in reports:
        if report.get("note"):  # written into the file by hand: what should be known of figures that were kept
            lines += ["", report["note"]]
        for group in dict.fromkeys(cell.group for cell in CELLS):
            own = cells_of(report, group)
            if own:
                rows = f"{own[0].shape} in {own[0].bits} bit, {own[0].per_device} rows at once on each GPU"
                title = f"## {len(report['gpu'])} GPUs: {rows}" if len(reports) > 1 else f"## {rows}"
                lines += ["", title, "", *table(own, report["cells"], len(report["gpu"])), *verdict(report, group)]
    return "\n".join(lines) + "\n"


def cells_of(report: dict[str, Any], group: str) -> list[Cell]:
    """Return the cells of `group` that ran, by blocks that keep their activations; variants are none of them."""
    alike = [cell for cell in CELLS if cell.group == group]
    counts = sorted({figures.get("cell", {}).get("kept", 0) for figures in report["cells"].values()})
    found = [replace(cell, kept=count) for count in counts or [0] for cell in alike if not (count and cell.runs_alone)]
    return [cell for cell in found if cell.name in report["cells"]]


def ratios(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return for each cell on several GPUs, by its name, what the issue asks: `of_one_gpu`, throughput over that of one
    GPU by Unsloth's default (the mean of those that each trained alone); `per_gpu`, the same for each GPU; `of_ddp`,
    over ddp with as many kept blocks; `loss_from_0` and `grad_norm_from_0`, the largest relative differences from the
    same strategy with none. What was not measured is left out."""
    cells, gpus, found = report["cells"], len(report["gpu"]), {}
    for group in dict.fromkeys(cell.group for cell in CELLS):
        linear = linear_speed(cells, group, gpus)
        for cell in cells_of(report, group):
            figures = cells[cell.name]
            speed = figures.get("tokens_per_second")
            if cell.runs_alone or not speed:
                continue
            own: dict[str, float] = {}
            if linear:
                own |= {"of_one_gpu": round(gpus * speed / linear, 3), "per_gpu": round(speed / linear, 3)}
            if ddp := cells.get(name_of(group, "ddp", cell.kept), {}).get("tokens_per_second"):
                own["of_ddp"] = round(speed / ddp, 3)
            base = cells.get(name_of(group, cell.strategy), {})
            if cell.kept and "loss" in base and "loss" in figures:
                own |= {f"{key}_from_0": largest(base[key], figures[key]) for key in ("loss", "grad_norm")}
            found[cell.name] = own
    return found


def verdict(report: dict[str, Any], group: str) -> list[str]:
    """Whether what `plan` chooses for these GPUs was the fastest that ran."""
    chosen, kept = report.get("chosen", {}).get(group), report.get("chosen_kept", {}).get(group, 0)
    ran = [cell for cell in cells_of(report, group) if not cell.runs_alone]
    speeds = {
        (cell.strategy, cell.kept): speed
        for cell in ran
        if (speed := report["cells"][cell.name].get("tokens_per_second"))
    }
    if (chosen, kept) not in speeds:
        return []
    fastest = max(speeds, key=lambda way: speeds[way])
    share = speeds[chosen, kept] / speeds[fastest]
    best = (chosen, kept) == fastest
    told = "the fastest that was measured" if best else f"{share:.3f} of the speed of {_way(*fastest)}"
    return ["", f"`plan` chooses {_way(chosen, kept)} here: {told}."]


def _way(strategy: str, kept: int) -> str:
    return f"`{strategy}`" + (f" with {kept} blocks kept" if kept else "")


def scaling(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Of linear, by number of GPUs."""
    counts = [len(report["gpu"]) for report in reports]
    lines = [f"| of linear, on GPUs: | {' | '.join(map(str, counts))} |", "|" + "---|" * (len(counts) + 1)]
    for cell in CELLS:
        if cell.runs_alone:
            continue
        shares = []
        for report in reports:
            speed = report["cells"].get(cell.name, {}).get("tokens_per_second")
            linear = linear_speed(report["cells"], cell.group, len(report["gpu"]))
            shares.append(f"{speed / linear:.3f}" if speed and linear else "")
        if any(shares):
            lines.append(f"| {cell.shape}, {cell.bits} bit, {cell.strategy} | {' | '.join(shares)} |")
    return lines


def linear_speed(found: dict[str, dict[str, Any]], group: str, gpus: int = 2) -> float | None:
    """Tokens per second of `gpus` GPUs that each train alone, as those do that did."""
    speeds = [found.get(f"{group}-{name}", {}).get("tokens_per_second") for name in ALONE]
    known = [speed for speed in speeds if speed]
    return gpus * statistics.mean(known) if known else None


def table(cells: Sequence[Cell], found: dict[str, dict[str, Any]], gpus: int = 2) -> list[str]:
    """Markdown lines of one group, measured on so many GPUs; with blocks that keep their activations, if any do."""
    group, with_kept = cells[0].group, any(cell.kept for cell in cells)
    header = [HEADER[0], *KEPT_HEADER, *HEADER[1:]] if with_kept else list(HEADER)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    single: int | None = found.get(f"{group}-single", {}).get("tokens_per_second")
    linear = linear_speed(found, group, gpus)
    for cell in cells:
        figures = found[cell.name]
        if "error" in figures:
            words = [cell.strategy, *[str(cell.kept)] * with_kept, " ".join(figures["error"].split())[:200]]
            lines.append(f"| {' | '.join(words)} |" + " |" * (len(header) - len(words)))
            continue
        speed = figures["tokens_per_second"]
        ddp = found.get(name_of(group, "ddp", cell.kept), {}).get("tokens_per_second")
        apart = figures.get("difference", {})
        memory = [figures["memory_gib"][phase] for phase in ("loading", "training")]
        of_ddp = f"{speed / ddp:.3f}" if ddp and not cell.runs_alone else ""
        cells_of_row = [
            *([str(cell.kept), of_ddp] if with_kept else []),
            f"{figures['step_seconds']:.3f}",
            f"{speed:,}",
            f"{speed / single:.2f}" if single and cell.strategy not in ALONE else "",
            f"{speed / linear:.3f}" if linear and not cell.runs_alone else "",
            *(f"{100 * apart[key]:.2g} %" if key in apart else "" for key in ("loss", "grad_norm", "adapter")),
            *(f"{max(ranks):.2f}" if ranks else "" for ranks in memory),
        ]
        lines.append(f"| {' | '.join([cell.strategy, *cells_of_row])} |")
    return lines
