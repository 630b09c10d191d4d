"""Trying a fix before it is proposed: whoever follows it should not meet another error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .document import Document, Finding, Repair
from .rule_registry import RULES

GONE = object()
"""Value of a key that is to be taken away."""
Changes = Mapping[str, Any]
"""New values by dotted key, or `GONE`."""


def leads_astray(config: Document, changes: Changes) -> bool:
    """Return whether `config` with these changes has an error that it has not without them."""
    if config.context.trying:
        return False
    context = replace(config.context, trying=True)
    now = replace(config, context=context)
    return bool(_errors(replace(now, values=changed(config.values, changes))) - _errors(now))


def choice(config: Document, options: Mapping[str, Changes], otherwise: str = "") -> str:
    """Return the fix that offers those of `options`, texts with what they change, that lead to no other error.

    `otherwise` is the fix where none is left, and stands behind the others as one more.
    """
    texts = [text for text, changes in options.items() if not leads_astray(config, changes)]
    return ", or ".join([*texts, *([otherwise] if otherwise else [])]) or next(iter(options))


def useful(config: Document, finding: Finding) -> Finding:
    """Return `finding` without its repairs where they would lead to another error."""
    changes = _changes(config, finding.repairs)
    return replace(finding, repairs=()) if changes and leads_astray(config, changes) else finding


def changed(values: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return a copy of `values` with `changes` made."""
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        inner = made.setdefault(section, {}) if section else made
        if isinstance(inner, dict):
            inner.pop(name, None)
            inner |= {} if value is GONE else {name: value}
    return made


def _changes(config: Document, repairs: Sequence[Repair]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for repair in repairs:
        section, dot, _ = repair.key.rpartition(".")
        if repair.kind == "rename":
            changes |= {repair.key: GONE, f"{section}{dot}{repair.value}": config.get(repair.key)}
        elif repair.kind in ("set", "add"):
            renamed = next((one for one in repairs if one.kind == "rename" and one.key == repair.key), None)
            changes[f"{section}{dot}{renamed.value}" if renamed else repair.key] = repair.value
        elif repair.kind == "remove":
            changes[repair.key] = GONE
    return changes


def _errors(config: Document) -> set[tuple[str, str]]:
    return {
        (rule.id, finding.key)
        for rule in RULES.values()
        if rule.severity == "error" and config.kind in rule.kinds
        for finding in rule.check(config)
        if finding.severity == "error"
    }
