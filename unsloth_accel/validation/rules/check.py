"""Checking a document by every rule, and how what is found is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .document import Document, Finding
from .ready_configs import FSDP2
from .rule_registry import RULES
from .trying import useful


def check_document(document: Document) -> list[Finding]:
    """Return what every rule finds in `document`, by line."""
    found = [
        replace(
            useful(document, finding),
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
        fix=f"fsdp_config of {FSDP2}",
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
