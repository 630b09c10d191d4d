"""Warnings and errors of a run as a reader can act on them: what, where, how often, and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import counted
from .run_record import Json, number, text, values

MOST = 40
"""Most kinds of message that are shown."""
_KNOWN = ("time", "rank", "event", "source", "step", "message", "fix")


@dataclass(frozen=True, kw_only=True)
class Message:
    severity: str
    source: str
    message: str
    fix: str
    where: str
    """Ranks and steps."""
    more: tuple[tuple[str, str], ...] = ()
    """Other figures of its first line."""


def grouped(lines: Iterable[Json]) -> list[Message]:
    """One message for all lines that say the same, errors first."""
    found: dict[tuple[str, str, str], list[Json]] = {}
    for line in lines:
        severity = "error" if line.get("event") in ("error", "hang") else "warning"
        found.setdefault((severity, text(line.get("source")), text(line.get("message"))), []).append(line)
    made = [_message(*key, same) for key, same in found.items()]
    return sorted(made, key=lambda message: message.severity != "error")


def problems(message: str) -> list[tuple[str, str]]:
    """The lines of an error's text, each as what is wrong and its fix."""
    lines = [line.replace("error: ", "", 1) if "Fix: " in line else line for line in message.splitlines()]
    return [split(line) for line in lines if line.strip()]


def split(message: str) -> tuple[str, str]:
    """`what. Fix: do this` as its two parts; the second is empty where there is none."""
    what, _, fix = message.partition(" Fix: ")
    return what.strip(), fix.strip()


def steps(value: Any) -> str:
    """Steps as text: how many, or which."""
    if isinstance(value, list):
        known = sorted(int(step) for one in value if (step := number(one)) is not None)
        return f"steps {known[0]:,} to {known[-1]:,}" if len(known) > 1 else "".join(f"step {step:,}" for step in known)
    many = number(value)
    return "" if many is None else counted(round(many), "step")


def _message(severity: str, source: str, message: str, lines: list[Json]) -> Message:
    what, fix = split(message)
    first = lines[0]
    more = tuple(
        (name.replace("_", " "), text(value))
        for name, value in first.items()
        if name not in _KNOWN and isinstance(value, str | int | float)
    )
    return Message(
        severity=severity,
        source=source.replace("_", " "),
        message=what,
        fix=fix or text(first.get("fix")),
        where=_where(lines),
        more=more,
    )


def _where(lines: list[Json]) -> str:
    parts = []
    ranks = sorted(set(map(int, values(lines, "rank"))))
    if ranks:
        parts.append(f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}")
    steps = sorted(set(map(int, values(lines, "step"))))
    if len(steps) > 3:
        parts.append(f"steps {steps[0]:,} to {steps[-1]:,}, {len(lines):,} times")
    elif steps:
        parts.append(f"step{'s' * (len(steps) > 1)} {', '.join(f'{step:,}' for step in steps)}")
    return ", ".join(parts)
