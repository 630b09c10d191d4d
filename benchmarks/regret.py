"""Regret of the plan: how much faster its nearest rivals are than its choice, on one GPU that stands in for others.

    python -m benchmarks.regret --out benchmarks/results/regret-1xH200.json [--settings '8B-*'] [--seconds 560]
    python -m benchmarks.regret --settings '8B-*' --dry-run          # what would be measured; needs no GPU

A setting is a model, a length, a global batch and a card's memory, to which torch's allocator is limited. Its rivals
are the plans with other rows per device, the two that are held to be fastest, and the chosen rows with more blocks
that keep their activations than the plan dares (STEP_UP of them). All train the same global batch, side by side in one
loaded process; `regret` is the chosen one's time for a step over the least of all, 1 at best.
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

STEPS, WARM_UP = 3, 1
STEP_UP = 0.1
"""Share of a model's blocks that a rival keeps more than the plan."""
RIVALS_BY_ROWS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    shape: str
    load_in_4bit: bool = False
    length: int
    rows: int
    """Rows of an optimizer step."""
    gib: float | None = None
    """Memory of the card; None for all that the GPU has."""

    @property
    def name(self) -> str:
        bits = "-4bit" if self.load_in_4bit else ""
        return f"{self.shape}{bits}-{self.rows}x{self.length}-{f'{self.gib:g}GiB' if self.gib else 'whole'}"

    def plan(self, hardware: Hardware, per_device: int | None = None) -> Plan:
        """Return the plan, with `per_device` rows at once where they are given; raises `ConfigError` where none is."""
        rows = {"per_device_train_batch_size": per_device} if per_device else {}
        values = {
            "model": {"name": self.shape, "max_seq_length": self.length, "load_in_4bit": self.load_in_4bit},
            "batch": {"global_size": self.rows},
            "data": {"path": "rows.jsonl"},
            "training": {"optim": "adamw_torch_fused", **rows},
            "output_dir": "runs/regret",
        }
        spec = from_config(config_values(self.shape) | {"dtype": "bfloat16"}, name=self.shape)
        card = hardware.devices[0]
        gib = self.gib or card.memory_gib
        card = replace(card, memory_gib=gib, memory_free_gib=gib)
        return plan(from_dict(values), replace(hardware, devices=(card,)), spec)

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
        )

    def cells(self, hardware: Hardware) -> list[Cell]:
        """Return the plan's cell and its rivals'."""
        chosen = self.plan(hardware)
        others = [one for rows in divisors(self.rows) if (one := self._if_any(hardware, rows))]
        others = [one for one in others if one.batch.per_device != chosen.batch.per_device]
        by_speed = sorted(others, key=lambda one: one.speed.step_seconds if one.speed else 0.0)
        found = [self.cell(one) for one in [chosen, *by_speed[:RIVALS_BY_ROWS]]]
        blocks = SHAPES[self.shape]["num_hidden_layers"]
        daring = fitting(found[0], kept=found[0].kept + max(1, round(STEP_UP * blocks)))
        return found + [daring] * (daring != found[0])

    def _if_any(self, hardware: Hardware, rows: int) -> Plan | None:
        try:
            made = self.plan(hardware, rows)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="regret.json", help="JSON; settings that it holds are not measured again")
    parser.add_argument("--settings", default="*", help="names or patterns, comma-separated; all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after so many seconds")
    parser.add_argument("--work", default="runs/benchmark", help="where checkpoints, data and runs go")
    parser.add_argument("--dry-run", action="store_true", help="show the cells and what the plan holds of each")
    options = parser.parse_args()
    work, out, started = Path(options.work).resolve(), Path(options.out), time.perf_counter()
    hardware = Hardware.parse("1xH200") if options.dry_run else Hardware.detect()
    hardware = replace(hardware, devices=hardware.devices[:1])
    report = opened(out, "regret", {"steps": STEPS, "warm_up_steps": WARM_UP, "shapes": SHAPES, "settings": {}})
    patterns = options.settings.split(",")
    wanted = [
        setting
        for setting in SETTINGS
        if setting.name not in report["settings"] and any(fnmatch(setting.name, pattern) for pattern in patterns)
    ]
    cells = {setting: setting.cells(hardware) for setting in wanted}
    if options.dry_run:
        for setting, own in cells.items():
            print(f"{setting.name}: {', '.join(cell.name for cell in own)}")
        return 0
    write_shapes([setting.shape for setting in wanted], work)

    def may_go_on() -> bool:
        return bool(time.perf_counter() - started < options.seconds)

    found: dict[str, dict[str, Any]] = {}
    ordered = [cell for own in cells.values() for cell in own]
    for cell, figures in measured(ordered, work, steps=STEPS, warm_up=WARM_UP, may_go_on=may_go_on):
        found[cell.name] = figures
        shown = {key: figures.get(key) for key in ("memory_gib", "median_step_seconds", "wall_seconds", "error")}
        print(f"{time.perf_counter() - started:.0f}s {cell.name} {json.dumps(shown)}", flush=True)
        for setting, own in cells.items():
            if own[-1] == cell:
                report["settings"][setting.name] = told(setting, setting.plan(hardware), own, found)
                report["regret"] = max(one["regret"] or float("inf") for one in report["settings"].values())
                out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, setting in report["settings"].items():
        print(f"{name}: regret {setting['regret']}, chosen {setting['chosen']}, fastest {setting['fastest']}")
    return 0


def told(setting: Setting, made: Plan, own: Sequence[Cell], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a setting's cells and its regret: None where what the plan chose ran out of memory."""
    seconds = {cell.name: found[cell.name].get("median_step_seconds") for cell in own}
    ran = {name: value for name, value in seconds.items() if value is not None}
    chosen, fastest = own[0].name, min(ran, key=lambda name: ran[name])
    return {
        "setting": asdict(setting),
        "chosen": chosen,
        "fastest": fastest,
        "regret": round(ran[chosen] / ran[fastest], 4) if chosen in ran else None,
        "estimated_step_seconds": made.speed and round(made.speed.step_seconds, 4),
        "estimated_gib": made.memory and round(made.memory.total, 3),
        "cells": {cell.name: found[cell.name] for cell in own},
    }


if __name__ == "__main__":
    sys.exit(main())
