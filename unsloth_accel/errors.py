"""Errors and problems of a run, told so that the reader can fix them.

Every check in this package returns `Problem`s instead of raising, so that all of them are shown at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .secret import shown

Severity = Literal["error", "warning"]


class UnslothAccelError(Exception):
    """An error of the run, not of the program: shown as its message, without a traceback."""

    exit_status = 1
    on_every_rank = False
    """Whether all ranks raise it alike, so that telling it once is enough."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython, and so a notebook's cell, shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with a description, a config file or a data set."""

    key: str
    """Dotted config key, or `file:line`."""
    value: Any = None
    """Value found there; None when there is nothing to show."""
    consequence: str
    """Sentence on what is wrong, or what would happen."""
    fix: str
    """Text to write or command to run instead."""
    severity: Severity = "error"
    file: str = ""
    """File that holds the key; empty when there is none or the key says it."""
    line: int | None = None
    """Line in `file`, from 1."""
    rule: str = ""
    """Id of the validation rule that found it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", shown(self.value, self.key))

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        value = repr(self.value) if isinstance(self.value, str) else str(self.value)
        found = "" if self.value is None else f"={shortened(value, 80)}"
        key = "" if self.file and self.key == "(file)" else f"{self.key}{found}: "
        return f"{self.severity}: {where}{key}{self.consequence} Fix: {self.fix}"


class ConfigError(UnslothAccelError):
    """One or more problems that stop a run before anything is trained or written."""

    exit_status = 2
    on_every_rank = True

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class LaunchError(UnslothAccelError):
    """`accelerate launch` ended badly; `exit_status` is the failing rank's own."""

    def __init__(
        self, message: str, exit_status: int, *, first: int | None = None, ended: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.first = first
        """Rank that failed first; None where no rank did."""
        self.ended = dict(ended or {})
        """Exit statuses of ranks that had failed when the first was seen to; negative: the signal that ended it."""

    def as_json(self) -> dict[str, Any]:
        """What is left of it for a report, and makes it anew."""
        return {"message": str(self), "exit_status": self.exit_status, "first": self.first, "ended": self.ended}


def errors(problems: Iterable[Problem]) -> list[Problem]:
    """Return those of `problems` that stop a run."""
    return [problem for problem in problems if problem.severity == "error"]


def raise_errors(problems: Sequence[Problem]) -> None:
    """Raise `ConfigError` with all of `problems` that are errors; return when there are none."""
    if found := errors(problems):
        raise ConfigError(found)


def close_match(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of `known` that `word` is most likely a misspelling of.

    With a `cutoff` near 1 the two differ by a letter or two.
    """
    return next(iter(difflib.get_close_matches(word[:200], sorted(known), n=1, cutoff=cutoff)), None)


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a fix for an unknown `word`: the nearest of `known` (behind `prefix`), or all of them if none is near."""
    known = sorted(known)
    close = close_match(word, known)
    if close:
        return f"did you mean {prefix}{close}?"
    if len(known) > 20:
        return "remove it, or look its name up in the config of TRL's trainer."
    return f"remove it, or use one of: {', '.join(known)}." if known else "remove it."


def counted(count: int, thing: str) -> str:
    """Return `1 row`, `2 rows`, `1 process`, `2 processes`, `2 batches`, `1,000 bytes`."""
    return f"{count:,} {thing}{'' if count == 1 else 'es' if thing.endswith(('s', 'ch')) else 's'}"


def as_word(value: Any) -> str:
    """Return a plain value as YAML has it: `true` for True, and a list without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_word, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def yaml_fault(error: Exception) -> str:
    """Return what is wrong with a YAML text, and in which line, from PyYAML's error."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return f"{where}{getattr(error, 'problem', None) or first_line(error)}."


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


def shortened(text: str, limit: int) -> str:
    """Return `text`, cut to `limit` characters with an ellipsis if it is longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
