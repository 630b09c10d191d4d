"""python -m unsloth_accel.config.field_page: write docs/run-yaml.md, every key of a run.yaml with its help."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from .commented import as_yaml
from .field_help import field_help
from .run_config import RunConfig

HEAD = """# Every key of a run.yaml

Written by `python -m unsloth_accel.config.field_page` from the help of the fields; [run.md](run.md) is where to begin,
and `unsloth-accel init` writes a file with all of them as comments. What is left out has its default. On a command
line any of them is `key=value`: `unsloth-accel launch run.yaml lora.r=32 training.max_steps=50`.
"""


def page() -> str:
    """Return the text of docs/run-yaml.md."""
    texts = field_help()
    fields = [one for one in dataclasses.fields(RunConfig) if not one.metadata.get("omegaconf_ignore")]
    alone = [one for one in fields if not dataclasses.is_dataclass(one.default_factory)]
    lines = [HEAD, "## At the top", "", *_table([(one.name, one, texts[one.name]) for one in alone])]
    for section in fields:
        kind: Any = section.default_factory
        if dataclasses.is_dataclass(kind):
            rows = [(key := f"{section.name}.{one.name}", one, texts[key]) for one in dataclasses.fields(kind)]
            lines += ["", f"## {section.name}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, dataclasses.Field[Any], str]]) -> Iterator[str]:
    yield "| key | default | what it is |"
    yield "|---|---|---|"
    for key, field, text in rows:
        escaped = text.replace("|", "\\|")
        yield f"| `{key}` | {_default(field)} | {escaped} |"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if callable(field.default_factory) else field.default
    return "needed" if value in (MISSING, dataclasses.MISSING) else f"`{as_yaml(value)}`"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/run-yaml.md").write_text(page(), encoding="utf-8")
