"""Tokenised rows on disk: whole, or made anew, whatever a killed process or a full disk left.

They are written to a directory beside their place, which takes that place when all is there, with a report that names
every file and its size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json, replacing_directory, sizes_below, unfinished, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

REPORT = "unsloth_accel.json"
_ROWS = "rows"


def stored(place: Path, make: Callable[[], tuple[Dataset, dict[str, Any]]]) -> tuple[Dataset, dict[str, Any]]:
    """Return the rows at `place` and what was reported of them; `make` gives both where they aren't there whole.

    One process per machine makes them, and the others wait for a lock on a file. Raises `OSError` where `place` can't
    be written.
    """
    from filelock import FileLock

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        found = _read(place)
        if found is None:
            if place.exists():
                print(f"{place} is damaged or cut short: it is made anew", flush=True)
            for left, _, _ in unfinished(place.parent, place.name):
                shutil.rmtree(left, ignore_errors=True)
            rows, report = make()
            with replacing_directory(place) as directory:
                rows.save_to_disk(str(directory / _ROWS))
                values = {**report, "files": sizes_below(directory / _ROWS)}
                write_atomically(directory / REPORT, json.dumps(values))
            found = _read(place)
    if found is None:
        raise OSError(f"{place} can't be read back")
    return found


def _read(place: Path) -> tuple[Dataset, dict[str, Any]] | None:
    """Return what is at `place`; None where it isn't whole."""
    from datasets import load_from_disk

    report = read_json(place / REPORT)
    # TRL's trainers leave beside the rows what they make of them.
    if not report or not report.get("files") or not report.pop("files").items() <= sizes_below(place / _ROWS).items():
        return None
    try:
        return load_from_disk(str(place / _ROWS)), report
    except Exception:  # of as many bytes, and not those that were written: arrow raises its own kinds
        return None
