"""The heartbeat and the watchdog of a process, begun: for a run of a run.yaml, and for a Trainer in a user's script."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..artifacts.run_directory import RunDirectory
from ..files import this_machine
from .hang_stacks import Stacks
from .heartbeat import Heartbeat, begin, own, process_state, read_beat
from .rank_log import RankLog
from .stop_request import REQUEST, to_go_on
from .watchdog import Watchdog

_PLACE = "unsloth-accel-ranks-"
"""How the names of directories in the system's temporary directory begin; user and launcher follow, as numbers."""

OLD = 3600.0
"""Seconds without a heartbeat after which such a directory is of a launch that has ended."""

_of_script: Watchdog | None = None
"""The watchdog of a user's script."""


def watch_run(files: RunDirectory, log: RankLog, world: int, hang_after: float | None, *, aloud: bool) -> None:
    """Begin the heartbeat and the watchdog of a process of a run in `files`, in the thread that trains; not with 0.

    `aloud` says that the launcher doesn't tell how the run ended.
    """
    if hang_after != 0:
        advice = functools.partial(after_a_hang, files.path, files.logs)
        _begin(files, log, world, hang_after, advice, whole_run=True, aloud=aloud)


def watch_script(output_dir: str, rank: int, world: int, hang_after: float | None) -> Heartbeat | None:
    """Return this process's heartbeat; begin it, and its watchdog, where it has none and there are other ranks. Where
    an earlier Trainer of the script has begun it, it goes by `hang_after` and tells of `output_dir` from now on.

    Its files lie in a temporary directory, named by the process that launched all ranks of this machine.
    """
    global _of_script
    if hang_after == 0:  # also where an earlier Trainer of the script is watched
        return None
    if _of_script is not None:
        _of_script.hang_after = hang_after
        _of_script.advice = functools.partial(after_a_hang, output_dir, _of_script.files.logs)
    if own() is not None or world == 1:
        return own()
    place = Path(tempfile.gettempdir(), f"{_PLACE}{os.getuid()}-{os.getppid()}")
    try:
        _remove_left(place)
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it is another user's", str(place))
    except OSError as error:
        _tell_unwatched(rank, error)
        return None
    files = RunDirectory(place)
    advice = functools.partial(after_a_hang, output_dir, files.logs)
    atexit.register(_remove_empty, files.logs, files.errors, place)
    _of_script = _begin(files, RankLog(None, rank), world, hang_after, advice, whole_run=False, aloud=True)
    REQUEST.know(output_dir)
    return own()


def who_left(files: RunDirectory, rank: int, world: int) -> list[int]:
    """Return the ranks whose process has ended, on this machine, without leaving an error or ending its heartbeat: over
    whose connections `rank` may have failed."""
    beats = [beat for other in range(world) if other != rank and (beat := read_beat(files.heartbeat(other)))]
    here = [beat for beat in beats if beat.host == this_machine() and not files.rank_error(beat.rank).is_file()]
    return [beat.rank for beat in here if process_state(beat) is None]


def _begin(
    files: RunDirectory,
    log: RankLog,
    world: int,
    hang_after: float | None,
    advice: Callable[[], str],
    *,
    whole_run: bool,
    aloud: bool,
) -> Watchdog | None:
    try:
        stacks = Stacks(files, log.rank)
    except OSError as error:  # no room, or not ours to write
        _tell_unwatched(log.rank, error)
        return None
    atexit.register(stacks.close)
    dog = Watchdog(files, log, world, hang_after, advice, stacks, aloud)
    begin(beats := Heartbeat(files.heartbeat(log.rank), log.rank, dog.look, whole_run=whole_run))

    def leave(_: object) -> None:
        beats.stop()
        stacks.close()

    REQUEST.know(files.path, tell=leave)  # which leaves without Python's own end
    return dog


def _tell_unwatched(rank: int, error: OSError) -> None:
    if rank == 0:
        told = f"a rank that hangs will not be named: {error.filename}: {error.strerror}. Fix: a TMPDIR with room."
        print(f"unsloth_accel: warning: {told}", file=sys.stderr, flush=True)


def after_a_hang(output_dir: str | Path, logs: Path) -> str:
    """Say what a run that hung has left in its `logs` and in `output_dir`, and how it goes on."""
    return f"The stacks of all ranks are in {logs}/rank-*.stacks; {to_go_on(output_dir)}."


def _remove_left(place: Path) -> None:
    """Remove the directories beside `place` of launches that were killed, in which no rank hung."""
    for left in place.parent.glob(f"{_PLACE}{os.getuid()}-*"):
        with suppress(OSError):  # another rank removes it, too
            beats = [path.stat().st_mtime for path in (left, *left.rglob("*"))]
            if not RunDirectory(left).hang.exists() and max(beats) < time.time() - OLD:
                shutil.rmtree(left, ignore_errors=True)


def _remove_empty(*directories: Path) -> None:
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()
