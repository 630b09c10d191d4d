"""The report that every run ends with, however it ends; a report that can't be made costs the run nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..artifacts.checkpoints import find_checkpoints, is_finished
from ..artifacts.run_directory import ERRORS, RunDirectory
from ..config.start_adapter import ADAPTER_CONFIG
from ..errors import LaunchError
from ..files import write_atomically


@contextmanager
def reported(directory: str | Path) -> Iterator[None]:
    """Run a launch in this block: afterwards the report of `directory` is there, also where it raised.

    A launch's own error is left beside the ranks': a rank that was killed leaves none. Ranks have a directory elsewhere
    for errors that this one can't take.
    """
    since = time.time()
    with suppress(OSError):
        os.environ[ERRORS] = str(Path(tempfile.gettempdir(), f"unsloth-accel-errors-{uuid.uuid4().hex}"))
    try:
        yield
    except LaunchError as error:
        told = {**error.as_json(), "time": time.time()}
        with suppress(OSError):
            write_atomically(RunDirectory(directory).launch_error, json.dumps(told))
        with suppress(Exception):  # what the ranks logged is there all the same
            from .unfinished import summarise

            if not _put_back(Path(directory)):
                summarise(directory, since, str(error))
        raise
    finally:
        tell(directory)
        shutil.rmtree(os.environ.pop(ERRORS, ""), ignore_errors=True)


def something_to_show(directory: Path) -> bool:
    """Return whether a run made something to load; else the earlier run that it was to overwrite is put back."""
    return is_replaced(directory) or any(checkpoint.has_adapter for checkpoint in find_checkpoints(directory))


def is_replaced(directory: Path) -> bool:
    """Return whether there is a finished adapter, one made since an earlier run was put aside, if one was."""
    files = RunDirectory(directory)
    if not files.previous.is_dir():
        return is_finished(directory)
    return is_finished(directory) and is_since(files.adapter / ADAPTER_CONFIG, files.previous)


def is_since(file: Path, aside: Path) -> bool:
    """Return whether a file was written after the last of an earlier run's was moved to `aside`, where it keeps its
    time: what a launch that was killed had not moved yet is older, and so is an adapter's that a link leads to."""
    return file.stat().st_mtime_ns >= aside.stat().st_mtime_ns


def _put_back(directory: Path) -> bool:
    """Return whether an earlier run, put aside by one that tried to overwrite it, is about to return."""
    return RunDirectory(directory).previous.is_dir() and not something_to_show(directory)


def tell(directory: str | Path) -> None:
    """Make the report and print where it is, or in a line why there is none; never raises.

    Where an earlier run is about to be put back, its report stays with it and this one goes beside the errors.
    """
    directory = Path(directory)
    try:
        from . import write

        line = str(write(directory, RunDirectory(directory).failed_report if _put_back(directory) else None))
    except Exception as error:  # a fault of the report must not become one of the run
        line = f"not made: {type(error).__name__}: {error}. Fix: unsloth-accel report {directory}"
    print(f"report    {line}", flush=True)
