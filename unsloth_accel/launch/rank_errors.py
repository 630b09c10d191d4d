"""What a rank that fails leaves for its launcher, and what is told of it: one traceback, that of the first to fail.

The others mostly fall over the connection that the first one left; what they say is kept in their logs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..artifacts.log_file import LogFile
from ..artifacts.run_directory import ERRORS, RunDirectory
from ..errors import UnslothAccelError, shortened
from ..files import write_atomically

TELLER = "UNSLOTH_ACCEL_TELLER"
"""Environment variable of launched processes: the number of the process that tells what they leave, their launcher."""
_LONGEST = 2**16
"""Most characters of a traceback that are kept, its last ones."""
_OF_A_PEER = re.compile(r"connection (closed|reset) by peer|remote process exited|broken pipe", re.IGNORECASE)
"""What gloo and NCCL say of a rank that has left; a script that ends its process group on its way out tells its own
error after that."""
_IN_A_LINE = 400
"""Most characters of an error below its traceback."""

Report = dict[str, Any]


def is_told() -> bool:
    """Return whether the launcher of this process lives, and tells what a rank leaves."""
    return os.environ.get(TELLER) == str(os.getppid())


def report_error(output_dir: str | Path, rank: int, error: BaseException, cause: BaseException | None = None) -> int:
    """Leave a rank's error where the launcher finds it; return the exit status that the rank should leave with.

    `cause` is what was raised, where `error` says it in other words; its traceback is left, too. The launcher names no
    rank for an error that every rank raises alike. Where output_dir can't take it, it goes to a directory of the
    launcher's, or to this process's stderr.
    """
    status, message = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, UnslothAccelError):
        status, message = error.exit_status, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, message = 130, "interrupted"
    elif isinstance(error, SystemExit):
        # One that leaves with 0 in the middle has its peers wait for it: that is no success.
        status = error.code if isinstance(error.code, int) and error.code else 1
        message = f"left by sys.exit({error.code!r}) before its end"
    plain = isinstance(error, UnslothAccelError)
    if cause in (None, error):
        cause = error.__cause__ if plain else error
    shown = [] if cause is None or isinstance(cause, KeyboardInterrupt) else traceback.format_exception(cause)
    report = {
        "rank": rank,
        "message": message,
        "exit_status": status,
        "every_rank": isinstance(error, UnslothAccelError) and error.on_every_rank,
        "traceback": "".join(shown)[-_LONGEST:],
        "plain": plain,
        "time": time.time(),
    }
    leave_word(RunDirectory(output_dir).rank_error(rank), report, f"rank {rank}: {message}")
    return status


def leave_word(place: Path, report: Report, message: str) -> None:
    """Write an error's `report` to `place` and to the launcher's own directory, where it looks if output_dir can't take
    it, or isn't known to it (a script that trains a run); where neither can take it, show `message`."""
    left, elsewhere = False, os.environ.get(ERRORS)
    other = elsewhere and Path(elsewhere) not in place.parents
    for path in (place, Path(elsewhere, place.name)) if elsewhere and other else (place,):
        with suppress(OSError):
            write_atomically(path, json.dumps(report))
            left = True
    if not left:
        print(f"unsloth_accel: {message}", file=sys.stderr, flush=True)


@contextmanager
def collecting(output_dir: Path | None) -> Iterator[Path]:
    """Have the ranks that are launched in this block leave their errors to this process; yields the directory where
    they do: output_dir, or for a script one that is removed afterwards, unless `tell` put logs there."""
    place = output_dir or Path(tempfile.gettempdir(), f"unsloth-accel-errors-{uuid.uuid4().hex}")
    before = {name: os.environ.get(name) for name in (TELLER, ERRORS)}
    os.environ |= {TELLER: str(os.getpid())} | ({} if output_dir else {ERRORS: str(place)})
    try:
        yield place
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}
        if output_dir is None:
            files = RunDirectory(place)
            shutil.rmtree(files.errors if files.logs.is_dir() else place, ignore_errors=True)


def reports_in(place: Path) -> list[Report]:
    """Return what ranks left of their errors, in the order in which they failed; what is of a lost connection after
    what is not."""
    left = [json.loads(path.read_text(encoding="utf-8")) for path in RunDirectory(place).told_errors()]
    return sorted(left, key=lambda one: (is_of_a_peer(one), one["time"]))


def is_of_a_peer(report: Report) -> bool:
    """Return whether a rank fell over the connection that another one left."""
    return bool(_OF_A_PEER.search(str(report["message"])))


def tell(reports: Sequence[Report], first: Report | None, place: Path, *, is_run: bool, several: bool) -> None:
    """Print the traceback of `first`, the report that is to blame, unless its message says all; put those of all
    ranks into their logs in `place`, for a script only where there are others than the one that is printed."""
    files, left = RunDirectory(place), [report for report in reports if report.get("traceback")]
    others = [report["rank"] for report in left if report is not first]
    for report in left if others or is_run else ():
        LogFile(files.rank_output(report["rank"])).write(report["traceback"].encode("utf-8", "backslashreplace"))
    where = f"what rank {others[0]} said is in {files.rank_output(others[0])}" if others else ""
    where = f"what {len(others)} other ranks said is in {files.logs}" if len(others) > 1 else where
    if first and first.get("traceback") and not first["plain"]:
        if several:
            print(f"rank {first['rank']} failed first{where and '; '}{where}", file=sys.stderr)
        print(first["traceback"], end="", file=sys.stderr, flush=True)
    elif where:
        print(where, file=sys.stderr, flush=True)


def in_a_line(report: Report) -> str:
    """Return the message of a `report` for the end of a launch: short, where its traceback has all of it."""
    message = str(report["message"])
    return message if report.get("plain", True) else shortened(" ".join(message.split()), _IN_A_LINE)
