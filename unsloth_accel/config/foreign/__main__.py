"""python -m unsloth_accel.config.foreign: write the tables of docs/migrating.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ...errors import as_word
from ...files import filled
from . import TOOLS
from .keys import Entry
from .shared import TRAINER

MARKS = ("<!-- keys: python -m unsloth_accel.config.foreign -->", "<!-- /keys -->")


def tables() -> str:
    """Return a Markdown table of every tool's keys, and before them those of the Trainer's fields that they share."""
    parts = ["### Fields of transformers' TrainingArguments", "", *_rows(TRAINER, {})]
    for tool in TOOLS:
        families = {f"{start}…": entry for start, entry in tool.families.items()}
        parts += ["", f"### {tool.name}", ""]
        if tool.defaults:
            said = ", ".join(f"`{key}: {as_word(value)}`" for key, value in tool.defaults.items() if value != "")
            parts += [f"Taken where a file leaves them out, as [{tool.name}]({tool.link}) does: {said}.", ""]
        parts += _rows({**tool.keys, **families}, TRAINER if tool.fields else {})
    return "\n".join(parts)


def _rows(entries: Mapping[str, Entry], elsewhere: Mapping[str, Entry]) -> list[str]:
    """Return the lines of one table: keys with the same entry share a row; those in `elsewhere` have theirs there."""
    rows: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if elsewhere.get(key) is not entry:
            rows.setdefault(entry.here.replace("|", "\\|"), []).append(f"`{key}`")
    return ["| there | here |", "|---|---|", *(f"| {', '.join(keys)} | {here} |" for here, keys in rows.items())]


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/migrating.md")
    target.write_text(filled(target.read_text(encoding="utf-8"), MARKS, tables()), encoding="utf-8")
