"""Standard streams that nobody reads any more: of a terminal that was closed, or a pipe whose reader is gone."""

from __future__ import annotations

import os
import select
from pathlib import Path

_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


def leave_broken_streams(to: Path | None = None) -> None:
    """Have what would be printed where it raises an error (a closed terminal, a pipe without reader) appended to the
    file `to`; without one, or where that can't be opened, it is dropped."""
    for stream in (1, 2):
        poll = select.poll()
        poll.register(stream, 0)
        if not any(found & _BROKEN for _, found in poll.poll(0)):
            continue
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            target = os.open(to or os.devnull, flags, 0o644)
        except OSError:
            target = os.open(os.devnull, flags)
        os.dup2(target, stream)
        os.close(target)
