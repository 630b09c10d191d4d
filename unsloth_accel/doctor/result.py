"""Result: what one check found, and how checks are run so that none can stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..errors import first_line

Status = Literal["ok", "warning", "error"]
Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the report."""

    name: str
    """What was looked at: a package, a GPU, a variable."""
    status: Status = "ok"
    """`error`: a run fails or trains wrongly; `warning`: slower, or wrong in some runs."""
    detail: str
    """What was found."""
    fix: str = ""
    """What to type or change; empty when all is well."""
    reference: str = ""
    """Where the rule comes from."""


def collect(checks: Iterable[tuple[str, Callable[[Subject], Iterable[Result]]]], subject: Subject) -> list[Result]:
    """Run the named `checks` on `subject`; one that crashes becomes an error under its name."""
    results: list[Result] = []
    for name, check in checks:
        try:
            results += check(subject)
        except Exception as error:
            detail = f"the check itself failed: {type(error).__name__}: {first_line(error)}"
            fix = "report it, with the output of `unsloth-accel doctor --json`"
            if isinstance(error, ModuleNotFoundError):
                fix = f"pip install {error.name}"
            results.append(Result(name=name, status="error", detail=detail, fix=fix))
    return results
