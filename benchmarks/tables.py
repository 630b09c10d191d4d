"""Write the table of docs/measured.md and docs/details_CN.md from benchmarks/results/.

python -m benchmarks.tables
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from unsloth_accel.files import filled
from unsloth_accel.hardware.hardware import Hardware

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HEADERS = {
    "docs/measured.md": (
        "rows",
        "one GPU",
        "two GPUs, DDP",
        "faster by",
        "largest loss difference",
        "peak GiB per GPU",
    ),
    "docs/details_CN.md": ("数据行", "一块 GPU", "两块 GPU，DDP", "加速", "损失的最大差", "每块 GPU 峰值 GiB"),
}
ROWS = {
    "docs/measured.md": {"full": "full, 2048 tokens", "variable": "256 to 2048 tokens"},
    "docs/details_CN.md": {"full": "满行，2048 个词元", "variable": "256 至 2048 个词元"},
}
MARKS = ("<!-- measured -->", "<!-- /measured -->")


def measured_with(hardware: Hardware, module: str, *words: str) -> dict[str, Any]:
    """Return the head of a report: the command, the day, and the GPUs and versions that were measured with."""
    from unsloth_accel.adapters.saving import versions

    gpus = [device.name for device in hardware.devices] or ["CPU"]
    command = " ".join([f"python -m benchmarks.{module}", *words])
    return {"command": command, "date": time.strftime("%Y-%m-%d"), "gpu": gpus, "versions": versions()}


def table(file: str) -> str:
    """The Markdown table of DDP against one GPU for `file`."""
    report: dict[str, Any] = json.loads((RESULTS / "ddp-2xH200-1.5B.json").read_text(encoding="utf-8"))
    lines = ["| " + " | ".join(HEADERS[file]) + " |", "|" + "---|" * len(HEADERS[file])]
    for rows, name in ROWS[file].items():
        found = report["rows"][rows]
        cells = [name]
        for strategy in ("single", "ddp"):
            run = found[strategy]
            cells.append(f"{run['median_step_seconds']:.3f} s/step, {run['tokens_per_second']:,} tokens/s")
        comparison = found["comparison"]
        cells.append(f"{comparison['speed_up']:.2f} ×")
        cells.append(f"{comparison['largest_loss_difference']:.4f}")
        cells.append(f"{found['single']['peak_gib']:.2f} → {found['ddp']['peak_gib']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for file in HEADERS:
        path = ROOT / file
        path.write_text(filled(path.read_text(encoding="utf-8"), MARKS, table(file)), encoding="utf-8")
