"""Why a run failed: the traceback of the rank that failed first, how each rank ended, and what to try."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..artifacts.run_directory import RunDirectory
from ..errors import shortened
from .run_record import Json, Rank, Recorded, at, number, table, text

_SAID = 200
"""Most characters of what a rank said, in the table."""
_ROWS = ("torch/utils/data", "collat", "token_balance", "datasets/")
"""Parts of a traceback through what loads and tokenises rows."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A rank, and how it ended."""

    rank: int
    step: str
    """Last step that it logged, or phase; empty where it logged none."""
    how: str
    said: str
    first: bool


@dataclass(frozen=True, kw_only=True)
class Failure:
    first: int | None
    """Rank that failed first; None where it isn't known."""
    traceback: str
    ranks: tuple[Ended, ...]
    tries: tuple[tuple[str, str], ...]
    """What to try: in words, and the command, which may be empty."""


def failure(run: Recorded) -> Failure | None:
    """Return why `run` failed; None where it left no error."""
    if not run.errors:
        return None
    left = {int(rank): error for error in reversed(run.errors) if (rank := number(error.get("rank"))) is not None}
    launch = next((error for error in run.errors if error.get("rank") is None), {})
    first = number(launch.get("first"))
    if first is None:  # nobody launched it who would say
        first = number(next((error for error in run.errors if error is not launch), {}).get("rank"))
    own = left.get(int(first), {}) if first is not None else {}
    logs = {rank.number: rank for rank in run.ranks}
    told = table(launch.get("ended"))
    known = [int(rank) for rank in told if rank.isdecimal()]
    return Failure(
        first=None if first is None else int(first),
        traceback=text(own.get("traceback")),
        ranks=tuple(
            Ended(
                rank=rank,
                step=_step(logs.get(rank)),
                how=_how(told.get(str(rank)), left.get(rank, {}), is_over=bool(launch)),
                said=_said(left.get(rank, {}), logs.get(rank)),
                first=rank == first,
            )
            for rank in sorted({*logs, *left, *known})
        ),
        tries=tuple(_tries(run, text(launch.get("message")) or text(own.get("message")), text(own.get("traceback")))),
    )


def _step(log: Rank | None) -> str:
    if log is None:
        return ""
    if log.steps:
        return f"{number(log.steps[-1].get('step')) or 0:,.0f}"
    return f"none, after {text(log.phases[-1].get('name'))}" if log.phases else "none"


def _how(status: Any, report: Json, *, is_over: bool) -> str:
    """Say how a rank ended, of which the launcher saw the exit `status`, or None."""
    ended = number(status)
    ended = number(report.get("exit_status")) if ended is None else ended
    if ended is None:
        return "ended by the launcher" if is_over else ""
    if ended in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return "SIGTERM"
    with suppress(ValueError):
        return signal.Signals(-int(ended)).name if ended < 0 else f"exit status {ended:.0f}"
    return f"exit status {ended:.0f}"


def _said(report: Json, log: Rank | None) -> str:
    message = text(report.get("message")) or (text(log.end.get("message")) if log else "")
    return shortened(message.strip().partition("\n")[0], _SAID)


def _tries(run: Recorded, message: str, traceback: str) -> Iterator[tuple[str, str]]:
    """What may help, what is most likely first; a fix that the message itself names is not said again."""
    files = RunDirectory(run.directory)
    described, again = shlex.quote(str(files.description)), shlex.quote(f"{run.directory}-again")
    if "SIGKILL" in message:
        yield (
            "The kernel, a container or a scheduler kills the process that takes too much of the machine's memory; the "
            "kernel notes it.",
            "sudo dmesg -T | grep -i -E 'out of memory|oom'",
        )
    elif found := re.search(r"SIG(SEGV|BUS|ABRT|ILL|FPE)", message):
        yield (
            f"{found[0]} comes from native code, a kernel or a library. Python can show from where it was called.",
            f"PYTHONFAULTHANDLER=1 unsloth-accel launch {described} output_dir={again}",
        )
    if re.search(r"\b(ImportError|ModuleNotFoundError|OSError: lib)", f"{message} {traceback}"):
        yield "Look what is wrong with the installation.", "unsloth-accel doctor"
    if any(part in traceback for part in _ROWS):
        yield "It failed over a row: look at the rows as the model sees them.", f"unsloth-accel preview {described}"
    if any(files.rank_stacks(rank.number).is_file() and "hang" in message for rank in run.ranks):
        yield "Each rank's Python stacks, as it hung, are in logs/rank-N.stacks.", ""
    if (number(at(run.plan, "num_processes")) or len(run.ranks)) > 1 and traceback:
        yield (
            "See whether one process alone fails, too; then it is not about several.",
            f"unsloth-accel launch {described} --num_processes 1 output_dir={again}",
        )
    if run.checkpoint:
        yield (
            f"{run.checkpoint.name} is whole: go on from there.",
            f"unsloth-accel launch {described} training.resume=true",
        )
    yield "What each rank printed is in logs/rank-N.log.", ""
