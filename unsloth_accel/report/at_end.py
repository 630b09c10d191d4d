"""The report that every run ends with, however it ends; a report that can't be made costs the run nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..accelerate_launch import ERRORS, LaunchError
from ..files import write_atomically
from ..launch_child import REPORT


@contextmanager
def reported(directory: str | Path) -> Iterator[None]:
    """Run a launch in this block: afterwards the report of `directory` is there, also where it raised.

    A launch's own word on its failure is left beside the ranks': a rank that was killed leaves none.
    """
    try:
        yield
    except LaunchError as error:
        told = {"message": str(error), "exit_status": error.exit_status, "time": time.time()}
        with suppress(OSError):
            write_atomically(Path(directory, ERRORS, REPORT), json.dumps(told))
        raise
    finally:
        tell(directory)


def tell(directory: str | Path) -> None:
    """Make the report and print where it is, or in a line why there is none; never raises."""
    try:
        from . import write

        line = str(write(directory))
    except Exception as error:  # a fault of the report must not become one of the run
        line = f"not made: {type(error).__name__}: {error}. Fix: unsloth-accel report {directory}"
    print(f"report    {line}", flush=True)
