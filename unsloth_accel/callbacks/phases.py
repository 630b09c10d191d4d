"""phase: a part of a run, shown while it lasts and logged with its seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .heartbeat import enter
from .rank_log import RankLog


@contextmanager
def phase(name: str, log: RankLog | None = None, *, about: str = "") -> Iterator[None]:
    """Show a line when `loading`, `tokenising`, `training`, `evaluating` or `saving` starts, with `about`.

    On a terminal, rank 0 adds the seconds at its end; the bars of what happens inside are the libraries' own. `log`
    gets a `phase` line when it has ended, also by an error, which says how far a failed run came. The heartbeat of this
    process names it while it lasts.
    """
    first = log is None or log.rank == 0
    text = f"{name} {about}".rstrip()
    if first:
        print(text, flush=True)
    started, before = time.perf_counter(), enter(name)
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        enter(before)
        if log is not None:
            log.write("phase", name=name, seconds=seconds)
    if first and sys.stdout.isatty():
        print(f"{text}: {seconds:.1f} s", flush=True)
