"""Runs as the code before the moves left them (tests/fixtures/runs_3238b35), copied to where a test can use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "fixtures" / "runs_3238b35"
KINDS = ("single", "ddp", "fsdp2_native", "interrupted")
"""Each a run's output_dir; `interrupted` is one of ddp whose rank 1 failed in step 3."""
PLACE = "@PLACE@"
"""Stands in the committed files for the directory that the runs were started in."""
RECORD = "unsloth_accel.json"


def placed(place: Path, *kinds: str) -> Path:
    """Copy model, rows and the runs of these kinds to `place`, with its path where the files name it; returns it.

    The runs' descriptions name all by relative paths, so whatever goes on from them has to start in `place`.
    """
    for name in ("model", "data", *kinds):
        shutil.copytree(HERE / name, place / name)
    for kind in kinds:
        exchange(place / kind, {PLACE: str(place)})
    return place


def exchange(directory: Path, words: dict[str, str]) -> list[Path]:
    """Replace `words` in every text file below `directory`; returns those that changed.

    A checkpoint's record, which holds its files' sizes, gets the new sizes of these and of no other.
    """
    changed = [path for path in sorted(directory.rglob("*")) if path.is_file() and _exchanged(path, words)]
    for path in changed:
        record = path.parent / RECORD
        if path != record and record.is_file():
            values = json.loads(record.read_text(encoding="utf-8"))
            if path.name in values["files"]:
                values["files"][path.name] = path.stat().st_size
                record.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return changed


def straight(kind: str) -> list[dict[str, Any]]:
    """The logged steps of the same run without an interruption, 4 steps, as the code before the moves trained it."""
    text = (HERE / "straight" / f"{kind}.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def _exchanged(path: Path, words: dict[str, str]) -> bool:
    before = path.read_bytes()
    try:
        text = before.decode("utf-8")
    except UnicodeDecodeError:
        return False
    for word, other in words.items():
        text = text.replace(word, other)
    path.write_bytes(text.encode("utf-8"))
    return text.encode("utf-8") != before
