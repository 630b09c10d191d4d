"""unsloth-accel verify: does a run train on several processes as it does on one?"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts.own_files import in_the_way
from ..errors import ConfigError, Problem, raise_errors
from ..files import unwritable, write_atomically
from ..secret import shown_word
from .options import add_run, command_parser, count
from .tables import console, print_lines, show, tables

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..verify.verification import Verification

EXAMPLES = """\
examples:
  unsloth-accel verify run.yaml --steps 4 batch.global_size=4
  unsloth-accel verify run.yaml --strategy ddp,fsdp2_native --json verified.json
  unsloth-accel verify run.yaml --strategy single          # the one process again: the noise of this hardware
  unsloth-accel verify run.yaml model.load_in_4bit=true --tolerance adapter=0.3 --keep runs/verified

exit status: 0 every strategy trains as one process does; 1 one does not; 2 something to correct, nothing started"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "verify",
        "Train the first steps of a run in one process and, by each strategy, in several, on the same rows "
        "in the same order, and compare loss, gradient norm, adapter, throughput and memory. The run's own output "
        "directory is left alone.",
        EXAMPLES,
        usage="unsloth-accel verify RUN.yaml [key=value ...] [--strategy S[,S...]] [--steps N] [--num-processes N] "
        "[--tolerance NAME=NUMBER] [--json FILE] [--keep DIRECTORY]",
    )
    add_run(made, "+")
    made.add_argument("--strategy", metavar="S[,S...]", help="strategies, such as ddp,fsdp2; default: all that can run")
    made.add_argument("--steps", type=count, metavar="N", default=8, help="optimizer steps; default %(default)s")
    made.add_argument("--num-processes", type=count, metavar="N", help="processes of each strategy; default: all GPUs")
    names = "tolerance of loss, grad_norm, moved or adapter"
    made.add_argument("--tolerance", action="append", default=[], metavar="NAME=NUMBER", help=names)
    made.add_argument("--json", metavar="FILE", help="write every figure there as JSON")
    made.add_argument("--keep", metavar="DIRECTORY", help="train there and keep it; default: a temporary directory")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    from ..hardware.hardware import Hardware
    from ..verify.settings import settings
    from ..verify.table import heading
    from ..verify.verdict import precision_of, tolerance
    from ..verify.verification import verify

    if asked.json:
        _must_be_writable("--json", Path(asked.json).absolute().parent)
        raise_errors(in_the_way(asked.json, lambda text: '"unsloth-accel verify ' in text[:200], "--json"))
    strategies = [name.strip() for name in (asked.strategy or "").split(",") if name.strip()]
    with _directory(asked.keep) as (directory, keep):
        chosen = settings(
            _read(asked.words, directory),
            Hardware.detect(),
            directory,
            strategies=strategies,
            steps=asked.steps,
            num_processes=asked.num_processes,
        )
        precision = precision_of(chosen.single)
        tolerance(precision, asked.tolerance, chosen.single.device)  # refuses what is none before anything starts
        print(heading(chosen.single, precision, asked.steps), flush=True)
        with _terminated_like_interrupted():
            found = verify(chosen, asked.tolerance, _progress())
        show_verified(found)
        if asked.json:
            values = {"command": shlex.join(["unsloth-accel", "verify", *map(shown_word, words)])} | found.to_dict()
            write_atomically(asked.json, json.dumps(values, indent=1) + "\n")
        if not found.same:
            keep()
        return int(not found.same)


def show_verified(found: Verification) -> None:
    """Print tables as wide as the terminal; elsewhere aligned text."""
    from ..verify.table import as_text, table, verdict

    if not sys.stdout.isatty():
        print(as_text(found))
        return
    rows, width = table(found), console().width
    gap = rows.index([])
    show(*tables(rows[:gap], width), "", *tables(rows[gap + 1 :], width), "")
    print_lines(("", line) for line in verdict(found))


def _read(words: Sequence[str], directory: Path) -> RunConfig:
    """The run of a YAML file and overrides; its output_dir is never used."""
    from ..config.read_run import is_override
    from ..validation.run_checks import read

    files = [word for word in words if not is_override(word)]
    if len(files) != 1:
        fix = "unsloth-accel verify RUN.yaml key=value …"
        found = files[1] if files else words[0]
        raise ConfigError(Problem(key=found, consequence="give one RUN.yaml, and overrides.", fix=fix))
    return read(files[0], [*(word for word in words if is_override(word)), f"output_dir={json.dumps(str(directory))}"])


@contextmanager
def _directory(asked: str | None) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield the directory to train in, and a function that keeps a temporary one; a failed launch keeps it too."""
    from ..errors import LaunchError

    if asked is not None:
        _must_be_writable("--keep", Path(asked).absolute())
        yield Path(asked), lambda: None
        return
    directory = Path(tempfile.mkdtemp(prefix="unsloth-accel-verify-"))
    kept: list[bool] = []
    try:
        yield directory, lambda: kept.append(True)
    except LaunchError:
        kept.append(True)
        raise
    finally:
        if kept:
            print(f"kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _must_be_writable(option: str, directory: Path) -> None:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if fault := unwritable(existing):
        consequence, fix = f"can't be written: {fault.strerror}.", "choose a place that you may write"
        raise ConfigError(Problem(key=option, value=str(directory), consequence=consequence, fix=fix))


def _progress() -> Callable[[str, int, int, float], None]:
    """Return a function that shows progress on stderr: a changing line on a terminal, elsewhere two lines a run."""
    shown: list[str] = []

    def tell(name: str, done: int, steps: int, seconds: float) -> None:
        what = f"step {done} of {steps}" if done else "loading"
        end = "\n" if done == steps else ""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name}: {what}, {seconds:.0f} s", end=end, file=sys.stderr, flush=True)
        elif (line := f"{name}: {what}") not in shown and done in (0, steps):
            shown.append(line)
            print(f"{line}, {seconds:.0f} s" if done else line, file=sys.stderr, flush=True)

    return tell


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end the runs first, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # below the line of progress
        signal.signal(signal.SIGTERM, previous)
