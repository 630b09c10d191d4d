"""The registry: every rule with its id, severity, what happens, and where that can be read or was measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import get_args

from ...errors import Severity
from .document import Document, Finding, Kind

Check = Callable[[Document], Iterator[Finding]]
EVERY: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "pair")
"""Kinds of a single file."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    id: str
    """Stable id: it stands in JSON output and may be looked up in docs/rules.md."""
    severity: Severity
    kinds: tuple[Kind, ...]
    check: Check
    happens: str
    reference: str


RULES: dict[str, Rule] = {}


def rule(id: str, severity: Severity = "error", on: tuple[Kind, ...] = ("accelerate",)) -> Callable[[Check], Check]:
    """Register a check. Its docstring says what happens, then `Reference:` and where that stands or was measured."""

    def register(check: Check) -> Check:
        happens, _, reference = inspect.cleandoc(check.__doc__ or "").partition("Reference:")
        add_rule(id, check, " ".join(happens.split()), " ".join(reference.split()), severity, on)
        return check

    return register


def add_rule(id: str, check: Check, happens: str, reference: str, severity: Severity, on: tuple[Kind, ...]) -> None:
    """Register a check without a docstring, one of several that differ only in what they say."""
    if id in RULES or not happens or not reference:
        raise ValueError(f"rule {id} is there twice, or lacks a consequence or a reference")
    RULES[id] = Rule(id=id, severity=severity, kinds=on, check=check, happens=happens, reference=reference)


def check_document(document: Document) -> list[Finding]:
    """Return what every rule finds in `document`, by line."""
    found = [
        replace(
            finding,
            key=printable(finding.key),
            consequence=printable(finding.consequence),
            fix=printable(finding.fix),
            rule=rule.id,
            severity=rule.severity,
        )
        for rule in RULES.values()
        if document.kind in rule.kinds
        for finding in rule.check(document)
        if finding.key.rpartition(".")[2] not in document.context.flags  # the command line wins
    ]
    return sorted(found, key=lambda finding: (finding.file, finding.line or 0))


def printable(text: str) -> str:
    """Return `text` without what a terminal would act on: keys come from files that anyone may have written."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
