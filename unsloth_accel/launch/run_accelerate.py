"""The real `accelerate launch`: its command as data, its own parser, and running it to a known end.

accelerate's launcher is called in this process, so that a failing rank's exit status and error are known and not only
its traceback.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..artifacts.run_directory import ERRORS, RunDirectory
from ..capabilities.probe import available
from ..errors import LaunchError, UnslothAccelError
from ..files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An `accelerate launch` command."""

    arguments: tuple[str, ...]
    """Arguments of `accelerate launch`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set beside the caller's."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables that are set too, and not shown."""
    yaml: str = ""
    """The config file's text."""
    output_dir: Path | None = None
    """Directory in which ranks leave their errors; None for a user's own script."""

    def __str__(self) -> str:
        """The command as it can be typed into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, "accelerate launch", shlex.join(self.arguments)])


def run_accelerate(command: Launch) -> None:
    """Run `accelerate launch` with `command` in this process and wait; all ranks have ended when it returns.

    Raises `LaunchError` with the failing rank, its exit status and, where it left one, its error.
    """
    import subprocess

    import psutil
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun's agent reports a failed rank in dozens of lines; the one that matters is printed at the end.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.update(command.environment | command.secrets)
    arguments = parse_arguments(command.arguments)
    arguments.quiet = False  # quiet replaces a rank's exit status by 1; there is no traceback here to keep quiet about
    # With rich installed and debug on, accelerate prints a failure and returns as if all had gone well.
    tells = available("failures that accelerate tells")
    is_rich_available = accelerate_launch.is_rich_available if tells else None
    accelerate_launch.is_rich_available = lambda: False
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    others = set(psutil.Process().children(recursive=True))
    try:
        accelerate_launch.launch_command(arguments)
    except ChildFailedError as error:
        raise _failure(command, {rank: failure.exitcode for rank, failure in error.failures.items()}) from None
    except subprocess.CalledProcessError as error:
        raise _failure(command, {0: error.returncode}) from None
    except (SignalException, KeyboardInterrupt) as error:
        number = getattr(error, "sigval", signal.SIGINT)
        raise LaunchError(f"stopped by {signal.Signals(number).name}; all ranks ended.", 128 + number) from None
    except (ValueError, OSError) as error:
        raise LaunchError(f"accelerate launch: {error}", 2) from None
    finally:
        accelerate_launch.is_rich_available = is_rich_available
        for number in previous:  # a second Ctrl-C must not leave ranks running
            signal.signal(number, signal.SIG_IGN)
        _end_children(others)
        for number, handler in previous.items():
            signal.signal(number, handler)
        for name in command.secrets:
            os.environ.pop(name, None)


class _Stopped(KeyboardInterrupt):
    """A signal that torchrun's agent doesn't see, because accelerate started one process without it."""

    def __init__(self, number: int) -> None:
        self.sigval = number


def _stop(number: int, frame: Any) -> None:
    raise _Stopped(number)


def _end_children(others: set[Any], patience: float = 10.0) -> None:
    """End the processes that this one started since it had `others`, `patience` seconds after asking them to."""
    import psutil

    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=patience)
    for child in alive:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _failure(command: Launch, ended: dict[int, int]) -> LaunchError:
    """Return the error of failed ranks: which one fell first, and its own message if it left one.

    `ended` holds exit statuses by rank; a negative one is the signal that ended the rank.
    """
    left = RunDirectory(command.output_dir).told_errors() if command.output_dir else []
    reports = sorted((json.loads(path.read_text(encoding="utf-8")) for path in left), key=itemgetter("time"))
    reported = {report["rank"] for report in reports}
    # A rank that was killed leaves no word, and its peers fall over the connection it left; torchrun's own SIGTERM
    # to the peers comes after a failure.
    for rank, status in ended.items():
        if status < 0 and -status != signal.SIGTERM and rank not in reported:
            name = signal.Signals(-status).name
            hint = "; out of memory is the usual reason" if name == "SIGKILL" else ""
            return LaunchError(f"rank {rank} was ended by {name}{hint}.", 128 - status)
    if reports:
        first = reports[0]
        where = "" if first["every_rank"] else f"rank {first['rank']} failed: "
        return LaunchError(f"{where}{first['message']}", first["exit_status"])
    # torchrun ends the other ranks with SIGTERM once one has failed.
    rank, status = next(((r, s) for r, s in ended.items() if s > 0), next(iter(ended.items())))
    if status < 0:
        return LaunchError(f"rank {rank} was ended by {signal.Signals(-status).name}.", 128 - status)
    return LaunchError(f"rank {rank} failed with exit status {status}; its own error is above.", status)


def report_error(output_dir: str | Path, rank: int, error: BaseException) -> int:
    """Leave a rank's error where the launcher finds it; return the exit status that the rank should leave with.

    The launcher names no rank for an error that every rank raises alike. Where output_dir can't take it, it goes to a
    directory of the launcher's, or to this process's stderr.
    """
    status, message = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, UnslothAccelError):
        status, message = error.exit_status, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, message = 130, "interrupted"
    elif isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    every = isinstance(error, UnslothAccelError) and error.on_every_rank
    report = {"rank": rank, "message": message, "exit_status": status, "every_rank": every, "time": time.time()}
    leave_word(RunDirectory(output_dir).rank_error(rank), report, f"rank {rank}: {message}")
    return status


def leave_word(place: Path, report: dict[str, Any], message: str) -> None:
    """Write an error's `report` to `place`, or to the launcher's own directory where output_dir can't take it; where
    neither can, show `message`."""
    elsewhere = os.environ.get(ERRORS)
    for path in (place, Path(elsewhere, place.name)) if elsewhere else (place,):
        with suppress(OSError):
            write_atomically(path, json.dumps(report))
            return
    print(f"unsloth_accel: {message}", file=sys.stderr, flush=True)


def takes_value(flag: str) -> bool:
    """Return whether an `accelerate launch` flag takes a value; unknown flags are left to accelerate to refuse."""
    action = _parser()._option_string_actions.get(flag)
    return action is not None and action.nargs != 0


@functools.cache
def _parser() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    parser: argparse.ArgumentParser = launch_command_parser()
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse with accelerate's own parser, which prints its usage and leaves with status 2 for a bad flag."""
    parsed: argparse.Namespace = _parser().parse_args(list(arguments))
    return parsed
