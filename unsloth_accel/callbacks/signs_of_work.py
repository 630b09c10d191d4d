"""Signs that a process works, as the system counts them: a processor's time, and what it reads, writes and is sent."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

WORKING = 0.05
"""Least share of a core, children included, that shows that a process works; a heartbeat takes 0.001."""
TRANSFERRING = 50_000.0
"""Least bytes per second that show that it reads or writes; a heartbeat writes 2,000."""


@dataclass(frozen=True)
class Signs:
    cpu: float = 0.0
    """Seconds of processors that a process and its children have taken."""
    transferred: float = 0.0
    """Bytes that it has read and written, and that this machine has sent and received: a process's are not counted."""

    def working(self, before: Signs, seconds: float) -> bool:
        """Whether it took a processor's time in the `seconds` since `before`."""
        return self.cpu - before.cpu >= WORKING * seconds

    def transferring(self, before: Signs, seconds: float) -> bool:
        """Whether something was read, written, sent or received in the `seconds` since `before`."""
        return self.transferred - before.transferred >= TRANSFERRING * seconds


def cpu_seconds(pid: int) -> float:
    """Seconds of processors that a process and its children have taken."""
    import psutil

    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                # With those of children that have ended: a compiler's take a second each.
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def own_signs() -> Signs:
    """Read the signs of this process."""
    import psutil

    transferred = 0.0
    with suppress(psutil.Error, OSError, AttributeError):
        files = psutil.Process().io_counters()
        transferred += files.read_bytes + files.write_bytes
        for name, card in psutil.net_io_counters(pernic=True).items():
            transferred += 0 if name == "lo" else card.bytes_sent + card.bytes_recv
    return Signs(cpu_seconds(os.getpid()), transferred)
