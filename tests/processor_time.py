"""Processor time as a calm machine would measure it, however busy or slow this one is."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

OTHERS = [sys.executable, "-c", "import asyncio, email.message, omegaconf, yaml"]
SECONDS_OF_OTHERS = 0.12
"""Processor time to start Python and import the other packages, on the machine that limits are set on."""


def calm_seconds(start: Callable[[], object], times: int = 5) -> float:
    """Return the processor time of the processes that `start` runs, compared with that of other packages' imports.

    A busy machine slows imports, which are most of what our commands do, by more than arithmetic, and both of a pair
    alike: their median share is what it is on a calm one.
    """
    shares = []
    for _ in range(times):
        before = seconds_of_children()
        subprocess.run(OTHERS, check=True)
        between = seconds_of_children()
        start()
        shares.append((seconds_of_children() - between) / (between - before))
    return SECONDS_OF_OTHERS * statistics.median(shares)


def seconds_of_children() -> float:
    """Return the processor time of all processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
