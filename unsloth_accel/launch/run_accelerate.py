"""The real `accelerate launch`: its command as data, its own parser, and running it to a known end.

accelerate's launcher is called in this process, so that a failing rank's exit status and error are known and not only
that one failed.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import signal
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts.checkpoints import to_go_on
from ..capabilities.probe import available
from ..errors import LaunchError
from . import rank_errors
from .broken_streams import leave_broken_streams

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that stop a launch, and that a rank takes as a stop request (`callbacks.stop_request`)."""
PATIENCE = 30.0
"""Seconds that ranks get to save and end, before SIGKILL; torchrun's agent gives them as many."""


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

    A signal that stops it (`SIGNALS`) goes to the ranks, which get `PATIENCE` seconds to save and end; one that was
    ignored when it started (SIGHUP by nohup, SIGINT and SIGQUIT in a script's background) is ignored here and there.
    Raises `LaunchError` with the failing rank, its exit status and, where it left one, its error, whose traceback is
    printed before; after a signal with 128 plus the signal's number.
    """
    with rank_errors.collecting(command.output_dir) as place:
        _run(command, place)


def _run(command: Launch, place: Path) -> None:
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
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    # torchrun's agent has handlers of its own, and takes an ignored signal too where it isn't told.
    if available("signals that torchrun leaves alone", needed=len(taken) < len(SIGNALS)):
        arguments.signals_to_handle = ",".join(number.name for number in taken)
    previous = {number: signal.signal(number, _stop) for number in taken}
    stopped: signal.Signals | None = None
    others = set(psutil.Process().children(recursive=True))
    try:
        accelerate_launch.launch_command(arguments)
    except ChildFailedError as error:
        raise _told(command, {rank: failure.exitcode for rank, failure in error.failures.items()}, place) from None
    except subprocess.CalledProcessError as error:
        raise _told(command, {0: error.returncode}, place, several=False) from None
    except (SignalException, KeyboardInterrupt) as error:
        stopped = signal.Signals(getattr(error, "sigval", signal.SIGINT))
    except (ValueError, OSError) as error:
        raise LaunchError(f"accelerate launch: {error}", 2) from None
    finally:
        accelerate_launch.is_rich_available = is_rich_available
        for number in previous:  # a second Ctrl-C must not leave ranks running
            signal.signal(number, signal.SIG_IGN)
        _end_children(others, stopped or signal.SIGTERM)
        for number, handler in previous.items():
            signal.signal(number, handler)
        for name in command.secrets:
            os.environ.pop(name, None)
    if stopped is not None:
        leave_broken_streams()
        raise _stopped(place, stopped, command.output_dir)


class _Stopped(KeyboardInterrupt):
    """A signal that torchrun's agent doesn't see, because accelerate started one process without it."""

    def __init__(self, number: int) -> None:
        self.sigval = number


def _stop(number: int, frame: Any) -> None:
    raise _Stopped(number)


def _end_children(others: set[Any], number: int, patience: float = PATIENCE) -> None:
    """End the processes that this one started since it had `others`, `patience` seconds after sending its own children,
    the ranks, the signal `number`; what the ranks started (loaders of rows that they may still need) comes after them.
    """
    import psutil

    this = psutil.Process()
    started = [child for child in this.children(recursive=True) if child not in others]
    ranks = [child for child in this.children() if child in started]
    for processes, asked, seconds in ((ranks, number, patience), (started, signal.SIGTERM, 5.0)):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(asked)
        _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _stopped(place: Path, number: signal.Signals, output_dir: Path | None = None) -> LaunchError:
    """Return the error of a launch that a signal stopped: in the ranks' words where all of them agreed to stop. Ranks
    that had not begun to listen leave none, and what a run has to go on from is told here."""
    left = [one for one in rank_errors.reports_in(place) if one["exit_status"] == 128 + number]
    message = next((one["message"] for one in left if one["every_rank"]), "")
    whole = f"; {to_go_on(output_dir)}" if output_dir and not left else ""
    told = f" Rank {left[0]['rank']}: {left[0]['message']}" if left else ""
    return LaunchError(message or f"stopped by {number.name}; all ranks ended{whole}.{told}", 128 + number)


def _failure(ended: dict[int, int], reports: Sequence[rank_errors.Report]) -> LaunchError:
    """Return the error of failed ranks: which one fell first, and its own message if it left one.

    `ended` holds exit statuses by rank, first of those that fell first; a negative one is the signal that ended it.
    """

    def error(rank: int, message: str, status: int) -> LaunchError:
        return LaunchError(message, status, first=rank, ended={str(one): status for one, status in ended.items()})

    reported = {report["rank"] for report in reports}
    silent = {rank: status for rank, status in ended.items() if rank not in reported}
    # A rank that was killed leaves no word, and its peers fall over the connection it left; torchrun's own SIGTERM
    # to the peers comes after a failure. NCCL's watchdog ends a rank by SIGABRT when a peer has left.
    later = {signal.SIGTERM} | ({signal.SIGABRT} if reports and not rank_errors.is_of_a_peer(reports[0]) else set())
    for rank, status in silent.items():
        if status < 0 and -status not in later:
            name = signal.Signals(-status).name
            hint = "; out of memory is the usual reason" if name == "SIGKILL" else ""
            return error(rank, f"rank {rank} was ended by {name}{hint}.", 128 - status)
    # torchrun ends the other ranks with SIGTERM once one has failed; one that takes it leaves with this status.
    asked = 128 + signal.SIGTERM
    left = next((rank for rank, status in silent.items() if status > 0 and status != asked), None)
    if reports and (left is None or reports[0]["every_rank"]):
        first, rank = reports[0], int(reports[0]["rank"])
        where = "" if first["every_rank"] else f"rank {rank} failed: "
        status = max(ended.get(rank, 0), 0) or first["exit_status"]
        return error(rank, f"{where}{rank_errors.in_a_line(first)}", status)
    rank = next(iter(ended)) if left is None else left
    status = ended[rank]
    if status < 0 or status == asked:
        number = signal.Signals(-status if status < 0 else status - 128)
        return error(rank, f"rank {rank} was ended by {number.name}.", 128 + number)
    return error(rank, f"rank {rank} failed with exit status {status}; its own error is above.", status)


def _told(command: Launch, ended: dict[int, int], place: Path, *, several: bool = True) -> LaunchError:
    """Return the error of failed ranks, and print what the first of them left."""
    reports = rank_errors.reports_in(place)
    error = _failure(ended, reports)
    first = next((report for report in reports if report["rank"] == error.first), None)
    rank_errors.tell(reports, first, place, is_run=command.output_dir is not None, several=several)
    return error


def known_flags() -> Collection[str]:
    """Return the flags of `accelerate launch`, which takes none that is shortened."""
    return _parser()._option_string_actions.keys()


def takes_value(flag: str) -> bool:
    """Return whether an `accelerate launch` flag takes a value."""
    action = _parser()._option_string_actions.get(flag)
    return action is not None and action.nargs != 0


@functools.cache
def _parser() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    parser: argparse.ArgumentParser = launch_command_parser()
    return parser


def has_default_config() -> bool:
    """Return whether `accelerate config` has left a file, which accelerate takes where none is named."""
    from accelerate.commands.config.config_args import default_config_file

    return os.path.isfile(default_config_file)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse with accelerate's own parser, which prints its usage and leaves with status 2 for a bad flag."""
    parsed: argparse.Namespace = _parser().parse_args(list(arguments))
    return parsed
