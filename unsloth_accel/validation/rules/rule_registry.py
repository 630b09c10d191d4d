"""The registry: every rule with its id, severity, what happens, and where that can be read or was measured."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    id: str, check: Check, happens: str, reference: str, severity: Severity, on: tuple[Kind, ...], usual: str = ""
) -> None:
    """Register a check without a docstring, one of several that differ only in what they say."""
    if id in RULES or not happens or not reference:
        raise ValueError(f"rule {id} is there twice, or lacks a consequence or a reference")
    RULES[id] = Rule(id=id, severity=severity, kinds=on, check=check, happens=happens, reference=reference, usual=usual)
