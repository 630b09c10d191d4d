"""Processes that live: those that carry a launch's variables, and whether a number is still the same process's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil


def carrying(variables: Mapping[str, str]) -> list[psutil.Process]:
    """Return the living processes of this machine in whose environment all `variables` are."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if variables.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def state_of(pid: Any) -> tuple[str, int]:
    """Return the state of a process of this machine, a letter of proc(5), and when it was started, in clock ticks since
    the machine was, by which another one with its number is told from it; empty and 0 once it ended."""
    with suppress(OSError, IndexError):
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if said[0] not in "ZXx":
            return said[0], int(said[19])
    return "", 0
