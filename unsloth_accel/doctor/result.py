"""Result: what one check found, and how checks are run so that none can stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..errors import first_line

Status = Literal["ok", "warning", "error"]
Subject = TypeVar("Subject")
REPORT = "report it, with the output of `unsloth-accel doctor --json`"
"""The fix for a fault of this package."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the report."""

    name: str
    """Subject of the check: a package, a GPU, a variable."""
    status: Status = "ok"
    """`error`: a run fails or trains wrongly; `warning`: slower, or wrong in some runs."""
    detail: str
    """Finding of the check."""
    fix: str = ""
    """Command to type or setting to change; empty when all is well."""
    reference: str = ""
    """Source of the rule."""


def warning(name: str, detail: str, fix: str, reference: str = "") -> Result:
    return Result(name=name, status="warning", detail=detail, fix=fix, reference=reference)


def error(name: str, detail: str, fix: str, reference: str = "") -> Result:
    return Result(name=name, status="error", detail=detail, fix=fix, reference=reference)


def collect(checks: Iterable[tuple[str, Callable[[Subject], Iterable[Result]]]], subject: Subject) -> list[Result]:
    """Run the named `checks` on `subject`; one that crashes becomes an error under its name."""
    results: list[Result] = []
    for name, check in checks:
        try:
            results += check(subject)
        except Exception as fault:
            detail = f"the check itself failed: {type(fault).__name__}: {first_line(fault)}"
            fix = f"pip install {fault.name}" if isinstance(fault, ModuleNotFoundError) else REPORT
            results.append(error(name, detail, fix))
    return results
