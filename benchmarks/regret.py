"""Regret of the plan: how much faster its nearest rivals are than its choice, on GPUs that stand in for others.

    python -m benchmarks.regret --out benchmarks/results/regret-1xH200.json [--settings '8B-*'] [--seconds 560]
    python -m benchmarks.regret --gpus 2 --out benchmarks/results/regret-2xH200.json [--settings …] [--seconds 560]
    python -m benchmarks.regret --settings '8B-*' --dry-run          # what would be measured; needs no GPU
    python -m benchmarks.regret --out benchmarks/results/regret-1xH200.json --anew      # by today's plan; nor does it

A setting is a model, a length, a global batch and a card's memory, to which torch's allocator is limited. Its rivals
are the plans with other rows per device, the two that are held to be fastest, and the chosen rows with more blocks
that keep their activations than the plan dares (STEP_UP of them); on two GPUs also the fastest plan by another
strategy. All train the same global batch, side by side in one
loaded process; `regret` is the chosen one's time for a step over the least of all, 1 at best. With `--anew` settings
whose choice is no longer that of the plan are judged by what it chooses now, where that was a rival; others are left
out of the file, to be measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.kept import opened
from benchmarks.loaded import Cell, fitting, measured, write_shapes
from benchmarks.random_checkpoint import SHAPES, config_values
from unsloth_accel.config.read_run import from_dict
from unsloth_accel.errors import ConfigError
from unsloth_accel.hardware.hardware import Hardware
from unsloth_accel.models.spec import from_config
from unsloth_accel.planning.batch import divisors
from unsloth_accel.planning.plan import Plan
from unsloth_accel.planning.planner import plan
from unsloth_accel.strategies import choosable

STEPS, WARM_UP = 4, 2
STEP_UP = 0.1
"""Share of a model's blocks that a rival keeps more than the plan."""
RIVALS_BY_ROWS = 2
UNMEASURED = ("fsdp2_native",)
"""Strategies that are no rivals: Unsloth's own sharding can't be given to a second trainer, as cells in one process
need."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    shape: str
    load_in_4bit: bool = False
    length: int
    rows: int
    """Rows of an optimizer step."""
    gib: float | None = None
    """Memory of the card; None for all that the GPU has."""
    gpus: int = 1

    @property
    def name(self) -> str:
        bits = "-4bit" if self.load_in_4bit else ""
        return f"{self.shape}{bits}-{self.rows}x{self.length}-{f'{self.gib:g}GiB' if self.gib else 'whole'}"

    def plan(self, hardware: Hardware, per_device: int | None = None, strategy: str = "auto") -> Plan:
        """Return the plan, with `per_device` rows at once and by `strategy` where they are given; raises `ConfigError`
        where none is."""
        rows = {"per_device_train_batch_size": per_device} if per_device else {}
        values = {
            "model": {"name": self.shape, "max_seq_length": self.length, "load_in_4bit": self.load_in_4bit},
            "batch": {"global_size": self.rows},
            "data": {"path": "rows.jsonl"},
            "distributed": {"strategy": strategy, "num_processes": self.gpus},
            "training": {"optim": "adamw_torch_fused", **rows},
            "output_dir": "runs/regret",
        }
        spec = from_config(config_values(self.shape) | {"dtype": "bfloat16"}, name=self.shape)
        cards = [
            replace(card, memory_gib=self.gib or card.memory_gib, memory_free_gib=self.gib or card.memory_gib)
            for card in hardware.devices[: self.gpus]
        ]
        return plan(from_dict(values), replace(hardware, devices=tuple(cards)), spec)

    def cell(self, made: Plan) -> Cell:
        batch = made.batch
        return Cell(
            shape=self.shape,
            load_in_4bit=self.load_in_4bit,
            per_device=batch.per_device,
            accumulation=batch.accumulation,
            length=self.length,
            kept=made.keep_activations or 0,
            limit_gib=self.gib,
            strategy=made.strategy,
            processes=made.num_processes,
        )

    def cells(self, hardware: Hardware) -> list[Cell]:
        """Return the plan's cell and its rivals'."""
        chosen = self.plan(hardware)
        others = [one for rows in divisors(self.rows // self.gpus) if (one := self._if_any(hardware, rows))]
        others = [one for one in others if one.batch.per_device != chosen.batch.per_device]
        by_speed = sorted(others, key=lambda one: one.speed.step_seconds if one.speed else 0.0)
        ways = [one.name for one in choosable(self.gpus) if one.name not in (chosen.strategy, *UNMEASURED)]
        by_others = [one for name in ways if (one := self._if_any(hardware, strategy=name))]
        found = [self.cell(one) for one in [chosen, *by_speed[:RIVALS_BY_ROWS], *by_others]]
        found = list(dict.fromkeys(found))
        blocks = SHAPES[self.shape]["num_hidden_layers"]
        daring = fitting(found[0], kept=found[0].kept + max(1, round(STEP_UP * blocks)))
        return found + [daring] * (daring != found[0])

    def _if_any(self, hardware: Hardware, rows: int | None = None, strategy: str = "auto") -> Plan | None:
        try:
            made = self.plan(hardware, rows, strategy)
        except ConfigError:
            return None
        return None if any(reason.startswith("tight: ") for reason in made.reasons) else made


SETTINGS = [
    Setting(shape="1.5B", length=2048, rows=32, gib=16),
    Setting(shape="1.5B", length=512, rows=64, gib=24),
    Setting(shape="1.5B", load_in_4bit=True, length=4096, rows=16, gib=16),
    Setting(shape="3B", length=2048, rows=16, gib=16),
    Setting(shape="3B", length=8192, rows=8, gib=40),
    Setting(shape="3B", load_in_4bit=True, length=1024, rows=32, gib=24),
    Setting(shape="8B", length=2048, rows=16, gib=24),
    Setting(shape="8B", length=2048, rows=16, gib=40),
    Setting(shape="8B", length=2048, rows=16, gib=80),
    Setting(shape="8B", length=8192, rows=4),
    Setting(shape="8B", load_in_4bit=True, length=2048, rows=16, gib=16),
    Setting(shape="8B", load_in_4bit=True, length=2048, rows=16, gib=24),
    Setting(shape="8B", load_in_4bit=True, length=1024, rows=16, gib=40),
]


def on_several(gpus: int) -> list[Setting]:
    """Return the settings of so many GPUs, with as many rows for each of them."""
    return [
        Setting(shape="8B", length=2048, rows=8 * gpus, gpus=gpus),
        Setting(shape="8B", length=2048, rows=8 * gpus, gib=40, gpus=gpus),
        Setting(shape="8B", length=2048, rows=8 * gpus, gib=24, gpus=gpus),
        Setting(shape="8B", load_in_4bit=True, length=2048, rows=8 * gpus, gib=24, gpus=gpus),
        Setting(shape="1.5B", length=2048, rows=16 * gpus, gib=16, gpus=gpus),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="regret.json", help="JSON; settings that it holds are not measured again")
    parser.add_argument("--gpus", type=int, default=1, help="settings of one GPU (default), or of several")
    parser.add_argument("--settings", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of a cell, {WARM_UP} to warm up")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    parser.add_argument("--anew", action="store_true", help="judge what was measured by what the plan chooses now")
    parser.add_argument("--dry-run", action="store_true", help="show the cells and what the plan holds of each")
    options = parser.parse_args()
    work, out, started = Path(options.work).resolve(), Path(options.out), time.perf_counter()
    parsed = options.dry_run or options.anew
    hardware = Hardware.parse(f"{options.gpus}xH200") if parsed else Hardware.detect()
    hardware = replace(hardware, devices=hardware.devices[: options.gpus])
    settings = SETTINGS if options.gpus == 1 else on_several(options.gpus)
    report = opened(out, "regret", {"steps": options.steps, "warm_up_steps": WARM_UP, "shapes": SHAPES, "settings": {}})
    patterns = options.settings.split(",")
    wanted = [
        setting
        for setting in settings
        if setting.name not in report["settings"] and any(fnmatch(setting.name, pattern) for pattern in patterns)
    ]
    if options.anew:
        judged_anew(report, hardware, settings)
        return finish(report, out)
    cells = {setting: setting.cells(hardware) for setting in wanted}
    if options.dry_run:
        for setting, own in cells.items():
            print(f"{setting.name}: {', '.join(cell.name for cell in own)}")
        return 0
    write_shapes([setting.shape for setting in wanted], work)

    def may_go_on() -> bool:
        return bool(time.perf_counter() - started < options.seconds)

    found: dict[str, dict[str, Any]] = {}
    ordered = in_order(cells)
    for cell, figures in measured(ordered, work, steps=options.steps, warm_up=WARM_UP, may_go_on=may_go_on):
        found[cell.name] = figures
        shown = {key: figures.get(key) for key in ("memory_gib", "median_step_seconds", "wall_seconds", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)
        for setting, own in cells.items():
            if cell in own and all(one.name in found for one in own):
                measured_cells = {one.name: found[one.name] for one in own}
                report["settings"][setting.name] = told(setting, setting.plan(hardware), measured_cells)
                finish(report, out)
    return 0


def in_order(cells: dict[Setting, list[Cell]]) -> list[Cell]:
    """Return the cells of all settings in the order in which they are measured: as they are on one GPU; on several by
    what is loaded once, and within it those last that keep more blocks than a plan dares, which may end their launch.
    """
    if all(setting.gpus == 1 for setting in cells):
        return [cell for own in cells.values() for cell in own]
    daring = {own[-1] for own in cells.values()}
    every = dict.fromkeys(cell for own in cells.values() for cell in own)
    groups = list(dict.fromkeys(cell.group for cell in every))
    return sorted(every, key=lambda cell: (groups.index(cell.group), cell in daring))


def finish(report: dict[str, Any], out: Path) -> int:
    """Write the report with the largest regret of all, infinite where a choice ran out of memory, and show it."""
    settings = report["settings"]
    report["regret"] = max((one["regret"] or float("inf") for one in settings.values()), default=None)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, one in settings.items():
        print(f"{name}: regret {one['regret']}, chosen {one['chosen']}, fastest {one['fastest']}")
    return 0


def judged_anew(report: dict[str, Any], hardware: Hardware, settings: Sequence[Setting]) -> None:
    """Judge each setting of `report` by the plan of now; those whose choice was not measured are left out."""
    measured_settings = report["settings"]
    report["settings"] = {}
    for setting in settings:
        cells = measured_settings.get(setting.name, {}).get("cells", {})
        made = setting.plan(hardware)
        if setting.cell(made).name in cells:
            report["settings"][setting.name] = told(setting, made, cells)


def table(report: dict[str, Any]) -> str:
    """Return the Markdown table of what was chosen and what was faster."""
    lines = ["| setting | card | chosen: rows × accumulation, blocks kept | s/step | fastest | regret |"]
    lines.append("|---|---|---|---|---|---|")
    for one in report["settings"].values():
        setting, cells = one["setting"], one["cells"]
        bits = " in 4 bit" if setting["load_in_4bit"] else ""
        card = f"{setting['gib']:g} GiB" if setting["gib"] else "whole"
        chosen, fastest = (cells[one[key]]["cell"] for key in ("chosen", "fastest"))
        ways = [_way(cell) for cell in (chosen, fastest)]
        seconds = cells[one["chosen"]].get("median_step_seconds")
        rows = f"{setting['shape']}{bits}, {setting['rows']} × {setting['length']}"
        same = "the same" if chosen == fastest else ways[1]
        lines.append(f"| {rows} | {card} | {ways[0]} | {seconds} | {same} | {one['regret']:.3f} |")
    return "\n".join(lines)


def _way(cell: dict[str, Any]) -> str:
    strategy = f"{cell['strategy']}, " if cell.get("processes", 1) > 1 else ""
    return f"{strategy}{cell['per_device']} × {cell['accumulation']}, {cell['kept']}"


def told(setting: Setting, made: Plan, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a setting's measured cells and its regret: None where what the plan chose ran out of memory."""
    ran = {name: one["median_step_seconds"] for name, one in cells.items() if "median_step_seconds" in one}
    chosen, fastest = setting.cell(made).name, min(ran, key=lambda name: ran[name])
    return {
        "setting": asdict(setting),
        "chosen": chosen,
        "fastest": fastest,
        "regret": round(ran[chosen] / ran[fastest], 4) if chosen in ran else None,
        "estimated_step_seconds": made.speed and round(made.speed.step_seconds, 4),
        "estimated_gib": made.memory and round(made.memory.total, 3),
        "cells": cells,
    }


if __name__ == "__main__":
    sys.exit(main())
