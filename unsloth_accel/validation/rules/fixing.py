"""Repairing a config: line edits of the source text, so that comments stay; only where the fix is no choice."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ...config.commented import as_yaml
from .document import Document, Finding, Repair

Edit = tuple[int, int, str]


def repaired(document: Document, found: Sequence[Finding]) -> tuple[str, list[Finding], list[Finding]]:
    """The text with every unambiguous repair made, the problems that this mends, and those that are left.

    A problem is mended whole or not at all; two that want to edit the same place are left both but the first.
    """
    edits: list[Edit] = []
    mended: list[Finding] = []
    left: list[Finding] = []
    for finding in found:
        own = [edit for repair in finding.repairs if (edit := _edit(document, repair)) is not None]
        whole = len(own) == len(finding.repairs) > 0
        if whole and not any(_overlap(edit, other) for edit in own for other in edits):
            edits += own
            mended.append(finding)
        else:
            left.append(finding)
    text = document.text
    # From the end, so that offsets hold; insertions at one place stay in their order.
    for start, end, _, new in sorted(((start, end, n, new) for n, (start, end, new) in enumerate(edits)), reverse=True):
        text = text[:start] + new + text[end:]
    return text, mended, left


def _overlap(one: Edit, other: Edit) -> bool:
    if one[0] == one[1] or other[0] == other[1]:
        return False  # an insertion
    return one[0] < other[1] and other[0] < one[1]


def _edit(document: Document, repair: Repair) -> Edit | None:
    """The edit that a repair means; None where it can't be made line by line."""
    if repair.kind == "utf-8":
        return (0, 0, "")  # the copy is written as UTF-8 anyway
    if repair.kind == "add":
        return _addition(document, repair)
    place = document.places.get(repair.key)
    if place is None or not place.own:
        return None
    in_json = document.file.endswith(".json")
    if repair.kind == "rename":
        new = str(repair.value)
        return (*place.key, json.dumps(new) if in_json else new)
    if repair.kind == "set":
        start, end = place.value
        if "\n" in document.text[start:end]:
            return None  # more than one line: a comment inside would be lost
        return (start, end, _written(repair.value, in_json, spaced=start == place.key[1]))
    if not place.plain or in_json:
        return None
    start = document.text.rfind("\n", 0, place.key[0]) + 1
    end = document.text.find("\n", place.key[0])
    return (start, len(document.text) if end < 0 else end + 1, "")


def _addition(document: Document, repair: Repair) -> Edit | None:
    """A new line below the section's first key, indented as it is."""
    section, _, name = repair.key.rpartition(".")
    first = next((place for key, place in document.places.items() if key.rpartition(".")[0] == section), None)
    if first is None or not first.own or document.file.endswith(".json"):
        return None
    start = document.text.rfind("\n", 0, first.key[0]) + 1
    indent = document.text[start : first.key[0]]
    if indent.strip():
        return None  # the section is written in one line
    return (start, start, f"{indent}{name}: {_written(repair.value, False)}\n")


def _written(value: Any, in_json: bool, spaced: bool = False) -> str:
    if in_json:
        return json.dumps(value)
    text = as_yaml(value)
    return f" {text}" if spaced and not re.match(r"\s", text) else text
