"""python -m unsloth_accel.validation.rules: write docs/rules.md."""

from __future__ import annotations

import sys
from pathlib import Path

from . import RULES

HEAD = """# Rules

What `unsloth-accel validate` finds, written by `python -m unsloth_accel.validation.rules`. Each rule has a file that
triggers it and the nearest one that doesn't, in tests/rules/. Paths are those of accelerate 1.15, transformers 5.17,
torch 2.13, PyYAML 6 and unsloth 2026.10.9; "measured" refers to runs of this project, "held true by a test" to
tests/validation/test_rules_reality.py, where the files go through the installed accelerate.

An error fails as it is launched, or trains otherwise than the file says; a rule may say when it is only a warning. With
`unsloth-accel launch --allow RULE` its error is a warning.

| rule | severity | what happens | where that stands |
|---|---|---|---|
"""


def table() -> str:
    """Return the text of docs/rules.md."""
    rows = []
    for rule in sorted(RULES.values(), key=lambda rule: rule.id):
        cells = (f"`{rule.id}`", rule.severity, rule.happens, rule.reference)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/rules.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(table(), encoding="utf-8")
