"""The registry: every rule with its id, severity, what happens, and where that can be read or was measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
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
    usual: str = ""
    """Few words for what most files have and train with: such findings are told together, in one line (`folded`)."""


RULES: dict[str, Rule] = {}


def rule(
    id: str, severity: Severity = "error", on: tuple[Kind, ...] = ("accelerate",), usual: str = ""
) -> Callable[[Check], Check]:
    """Register a check. Its docstring says what happens, then `Reference:` and where that stands or was measured.

    An error fails, or trains otherwise than the file says; all else is a warning. What is an error in some files only
    is registered as one, and its other findings are `mild`.
    """

    def register(check: Check) -> Check:
        happens, _, reference = inspect.cleandoc(check.__doc__ or "").partition("Reference:")
        add_rule(id, check, " ".join(happens.split()), " ".join(reference.split()), severity, on, usual)
        return check

    return register


def add_rule(
    id: str,
    check: Check,
    happens: str,
    reference: str,
    severity: Severity,
    on: tuple[Kind, ...],
    usual: str = "",
) -> None:
    """Register a check without a docstring, one of several that differ only in what they say."""
    if id in RULES or not happens or not reference:
        raise ValueError(f"rule {id} is there twice, or lacks a consequence or a reference")
    RULES[id] = Rule(id=id, severity=severity, kinds=on, check=check, happens=happens, reference=reference, usual=usual)


def check_document(document: Document) -> list[Finding]:
    """Return what every rule finds in `document`, by line."""
    found = [
        replace(
            finding,
            key=printable(finding.key),
            consequence=printable(finding.consequence),
            fix=printable(finding.fix),
            rule=rule.id,
            severity="warning" if "warning" in (rule.severity, finding.severity) else "error",
        )
        for rule in RULES.values()
        if document.kind in rule.kinds
        for finding in rule.check(document)
    ]
    return sorted(found, key=lambda finding: (finding.file, finding.line or 0))


def folded(found: Sequence[Finding]) -> list[Finding]:
    """Return `found` with the warnings that most files get as one line, where there are several of them."""
    usual = [one for one in found if RULES[one.rule].usual]
    rest = [one for one in found if not RULES[one.rule].usual]
    if len(usual) < 2:
        return list(found)
    words = list(dict.fromkeys(RULES[one.rule].usual for one in usual))
    one_line = Finding(
        key="fsdp_config",
        consequence=f"trains, and is not made for Unsloth: {', '.join(words)}.",
        fix="fsdp_config of accelerate_configs/fsdp2.yaml",
        severity="warning",
        file=usual[0].file,
        line=min((one.line for one in usual if one.line), default=None),
        rule=", ".join(dict.fromkeys(one.rule for one in usual)),
    )
    return sorted([*rest, one_line], key=lambda finding: (finding.file, finding.line or 0))


def named(finding: Finding) -> Finding:
    """Return `finding` with its rule's id behind the fix, to look up and to allow."""
    return replace(finding, fix=f"{finding.fix} [{finding.rule}]")


def printable(text: str) -> str:
    """Return `text` without what a terminal would act on: keys come from files that anyone may have written."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
