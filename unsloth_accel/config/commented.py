"""A run.yaml as text, with comments: its fields' help, or where each value comes from."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import MISSING

from .field_help import field_help
from .run_config import RunConfig
from .translate import nested

_WIDTH = 110
"""Columns of a comment."""


def commented(settings: Mapping[str, Any], head: Sequence[str], remarks: Mapping[str, str] | None = None) -> str:
    """Return a run.yaml of `settings`, by dotted key, below the comment `head`, a line each.

    With `remarks`, by dotted key, each value has its remark beside it and nothing else is written. Without, every field
    is written with its help, those that `settings` leave out as comments with their defaults.
    """
    lines = [line for text in head for line in _comment(text)]
    values = nested(settings)
    for field in dataclasses.fields(RunConfig):
        if field.metadata.get("omegaconf_ignore"):
            continue
        section = values.get(field.name)
        if remarks is None:
            lines += ["", *_helped(field, section)]
        elif isinstance(section, Mapping):
            beside = {key: _beside(remarks.get(f"{field.name}.{key}")) for key in section}
            lines.append(f"{field.name}:")
            lines += [f"  {key}: {as_yaml(value)}{beside[key]}" for key, value in section.items()]
        elif section is not None:
            lines.append(f"{field.name}: {as_yaml(section)}{_beside(remarks.get(field.name))}")
    return "\n".join(lines) + "\n"


def as_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _helped(field: dataclasses.Field[Any], section: Any) -> Iterator[str]:
    """Yield the lines of one field of RunConfig: a value, or a section with all of its fields."""
    name, texts = field.name, field_help()
    yield from _comment(texts[name])
    if not dataclasses.is_dataclass(field.default_factory):
        given = section if section is not None else field.default
        if given in (MISSING, dataclasses.MISSING):
            yield f"# {name}:"
        elif isinstance(section, Mapping):
            yield f"{name}:"
            yield from (f"  {key}: {as_yaml(value)}" for key, value in section.items())
        else:
            yield f"{name}: {as_yaml(given)}"
        return
    section = section or {}
    yield f"{name}:" if section else f"# {name}:"
    for one in dataclasses.fields(field.default_factory):
        yield from _comment(texts[f"{name}.{one.name}"], "  ")
        if one.name in section:
            yield f"  {one.name}: {as_yaml(section[one.name])}"
        else:
            default = one.default_factory() if callable(one.default_factory) else one.default
            yield f"  # {one.name}: {as_yaml(default)}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _beside(remark: str | None) -> str:
    return f"  # {remark}" if remark else ""
