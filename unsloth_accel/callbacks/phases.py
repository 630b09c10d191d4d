"""phase: what a run is at, shown while it lasts and logged with its seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .rank_log import RankLog


@contextmanager
def phase(name: str, log: RankLog | None = None, *, about: str = "") -> Iterator[None]:
    """Around `loading`, `tokenising`, `training`, `evaluating`, `saving`: a line when it starts, with `about`.

    On a terminal, rank 0 turns it into one with the seconds; the bars of what happens inside are the libraries' own.
    `log` gets a `phase` line when it has ended, also by an error, which says how far a failed run came.
    """
    first = log is None or log.rank == 0
    text = f"{name} {about}".rstrip()
    if first:
        print(text, flush=True)
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        if log is not None:
            log.write("phase", name=name, seconds=seconds)
    if first and sys.stdout.isatty():
        print(f"{text}: {seconds:.1f} s", flush=True)
