"""python -m unsloth_accel.rewards.page: write the tables of docs/rewards.md, every reward with what it needs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..config.installed_source import defaults
from .known import REWARDS
from .math_answers import SECONDS
from .reward import Reward

_TABLE = re.compile(r"(<!-- rewards of ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """Return the text of docs/rewards.md with its tables made anew, each between its comments."""
    return _TABLE.sub(lambda found: f"{found[1]}{_table(found[2])}{found[3]}", text)


def _table(origin: str) -> str:
    rows = [reward for reward in REWARDS if reward.origin == origin]
    head = ["| name | reward | arguments | column |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_row, rows)]) + "\n"


def _row(reward: Reward) -> str:
    columns = ", ".join(f"`{one}`" for one in reward.columns) or "–"
    needs = f"; needs {reward.package}" if reward.package else ""
    about = reward.about.replace("|", "\\|")
    return f"| `{reward.name}` | {about}{needs} | {', '.join(_arguments(reward)) or '–'} | {columns} |"


def _arguments(reward: Reward) -> Iterator[str]:
    known = defaults(reward.place)
    for name, needed in reward.arguments.items():
        value = known.get(name, "").replace("SECONDS", str(SECONDS))
        yield f"`{name}` (needed)" if needed else f"`{name}` {value}".replace('"', "")


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/rewards.md")
    file.write_text(page(file.read_text(encoding="utf-8")), encoding="utf-8")
