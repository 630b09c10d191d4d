"""Launch: from a plan, or a user's own script and config, to `accelerate launch`.

`Launch` is plain data: the arguments and environment of `accelerate launch`. `run` hands it to accelerate's own
launcher in this process, so that a failing rank's exit status and error are known and not only its traceback.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .adapters.environment import PROMISE, promise_of_config
from .files import write_atomically
from .hardware import Hardware, detect
from .planner import Plan, plan
from .problems import ConfigError, Problem, UnslothAccelError, errors, raise_errors
from .run_config import is_override, load
from .validation import (
    ADAPTER,
    accelerate_problems,
    checkpoints,
    input_problems,
    output_problems,
    read_accelerate_config,
)

TRAINING_MODULE = "unsloth_accel.training.sft"
ERRORS = "errors"
"""Directory inside a run's output_dir where a failing rank leaves its error, as rank-N.json."""


class LaunchError(UnslothAccelError):
    """`accelerate launch` ended badly; `exit_status` is the failing rank's own."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An `accelerate launch` command."""

    arguments: tuple[str, ...]
    """What follows `accelerate launch`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set beside the caller's."""
    yaml: str = ""
    """The config file's text."""
    output_dir: Path | None = None
    """Where ranks leave their errors; None for a user's own script."""

    def __str__(self) -> str:
        """The command as it can be typed into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, "accelerate launch", shlex.join(self.arguments)])


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `unsloth-accel launch` was asked for, taken apart."""

    run_yaml: str | None = None
    overrides: tuple[str, ...] = ()
    accelerate_flags: tuple[str, ...] = ()
    """In run mode accelerate's own flags; in script mode everything, script and its arguments included."""
    dry_run: bool = False


def parse(tokens: Sequence[str]) -> Request:
    """Take apart what follows `unsloth-accel launch`.

    Run mode has a run's YAML as its first word that is no flag or flag's value; anything else is script mode, where all
    words but `--dry-run` are `accelerate launch`'s. Raises `ConfigError` when there is nothing to launch.
    """
    flags: list[str] = []
    overrides: list[str] = []
    run_yaml: str | None = None
    dry_run = False
    words = list(tokens)
    while words:
        word = words.pop(0)
        if word == "--dry-run":
            dry_run = True
        elif word.startswith("-"):
            flags.append(word)
            if "=" not in word and words and _takes_value(word):
                flags.append(words.pop(0))
        elif is_override(word):
            overrides.append(word)
        elif run_yaml is not None:
            fix = "write key=value, for example training.max_steps=2"
            raise ConfigError(Problem(key=word, consequence="is neither an override nor a flag.", fix=fix))
        elif word.endswith((".yaml", ".yml")):
            run_yaml = word
        else:
            return Request(accelerate_flags=(*flags, word, *words), dry_run=dry_run)
    if run_yaml is None:
        fix = "unsloth-accel launch RUN.yaml, or unsloth-accel launch --config_file X.yaml script.py"
        raise ConfigError(Problem(key="launch", consequence="there is nothing to launch.", fix=fix))
    return Request(run_yaml=run_yaml, overrides=tuple(overrides), accelerate_flags=tuple(flags), dry_run=dry_run)


def for_run(request: Request, hardware: Hardware) -> tuple[Launch, Plan, list[Problem]]:
    """The launch of a run's YAML, its plan, and what would stop it; writes nothing.

    Raises `ConfigError` where there is no plan to speak of.
    """
    assert request.run_yaml is not None
    flags, overrides = _own_overrides(request.accelerate_flags)
    run = load(request.run_yaml, [*request.overrides, *overrides])
    problems = [*input_problems(run), *output_problems(run)]
    try:
        decided = plan(run, hardware)
    except ConfigError as error:
        raise ConfigError([*error.problems, *errors(problems)]) from None
    directory = Path(run.output_dir)
    words = ["--config_file", str(directory / "accelerate.yaml"), *flags, "-m", TRAINING_MODULE]
    words += [str(directory / "run.yaml"), *(["training.resume=true"] if run.resume else [])]
    if flags:
        _parse_accelerate(words)  # refuses a misspelt flag before anything is touched
    launch = Launch(
        arguments=tuple(words),
        environment=decided.environment,
        yaml=decided.accelerate_config.to_yaml(),
        output_dir=directory,
    )
    return launch, decided, problems


def for_script(request: Request, hardware: Hardware) -> tuple[Launch, list[Problem]]:
    """The launch of a user's own script, and what its config would do wrong; raises `ConfigError` for bad flags."""
    arguments = request.accelerate_flags
    parsed = _parse_accelerate(arguments)
    launch = Launch(arguments=arguments)
    if not (parsed.module or parsed.no_python or Path(parsed.training_script).is_file()):
        fix = "unsloth-accel launch --config_file X.yaml script.py, or launch RUN.yaml"
        raise ConfigError(Problem(key=parsed.training_script, consequence="no such script.", fix=fix))
    if parsed.config_file is None:
        return launch, []
    config = read_accelerate_config(parsed.config_file)
    problems = accelerate_problems(config, hardware, parsed.num_processes)
    launch = replace(launch, yaml=Path(parsed.config_file).read_text(encoding="utf-8"))
    # Flags that choose another kind of launch than the file's: then the file promises nothing.
    if any((parsed.cpu, parsed.multi_gpu, parsed.use_fsdp, parsed.use_deepspeed, parsed.use_megatron_lm, parsed.tpu)):
        return launch, []
    promised = promise_of_config(config, parsed.config_file, parsed.num_processes)
    if promised is None:
        return launch, problems
    environment = {PROMISE: json.dumps(asdict(promised))}
    if promised.device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "UNSLOTH_FORCE_CPU": "1"}
    return replace(launch, environment=environment), problems


def launch(
    tokens: Sequence[str], *, run: Callable[[Launch], None] | None = None, hardware: Hardware | None = None
) -> None:
    """Do what `unsloth-accel launch TOKENS…` says; `run` and `hardware` are given by tests.

    Raises `ConfigError` before anything is started or written, `LaunchError` when a rank fails.
    """
    request = parse(tokens)
    hardware = hardware or detect()
    decided: Plan | None = None
    if request.run_yaml is None:
        command, problems = for_script(request, hardware)
    else:
        command, decided, problems = for_run(request, hardware)
        print(f"plan for {request.run_yaml}\n{decided}", flush=True)
    if request.dry_run:
        _print_dry_run(command, problems)
        return
    raise_errors(problems)
    for problem in problems:
        print(problem, file=sys.stderr)
    with nullcontext() if decided is None else _made_room(decided):
        (run or run_accelerate)(command)


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
    os.environ.update(command.environment)
    arguments = _parse_accelerate(command.arguments)
    arguments.quiet = False  # quiet replaces a rank's exit status by 1; there is no traceback here to keep quiet about
    is_rich_available = accelerate_launch.is_rich_available
    # With rich installed and debug on, accelerate prints a failure and returns as if all had gone well.
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
    """What to tell of failed ranks: which one fell first, and in its own words if it left any.

    `ended` holds exit statuses by rank; a negative one is the signal that ended the rank.
    """
    reports = sorted(_reports(command.output_dir), key=lambda report: report["time"])
    reported = {report["rank"] for report in reports}
    # A rank that was killed leaves no word, and its peers fall over the connection it left; torchrun's own SIGTERM
    # to the peers comes after a failure.
    killed = [rank for rank, status in ended.items() if status < 0 and -status != signal.SIGTERM]
    for rank in killed:
        if rank not in reported:
            name = signal.Signals(-ended[rank]).name
            hint = "; out of memory is the usual reason" if name == "SIGKILL" else ""
            return LaunchError(f"rank {rank} was ended by {name}{hint}.", 128 - ended[rank])
    if reports:
        first = reports[0]
        where = "" if first["every_rank"] else f"rank {first['rank']} failed: "
        return LaunchError(f"{where}{first['message']}", first["exit_status"])
    # torchrun ends the other ranks with SIGTERM once one has failed.
    rank, status = next(((r, s) for r, s in ended.items() if s > 0), next(iter(ended.items())))
    if status < 0:
        return LaunchError(f"rank {rank} was ended by {signal.Signals(-status).name}.", 128 - status)
    return LaunchError(f"rank {rank} failed with exit status {status}; its own error is above.", status)


def _reports(output_dir: Path | None) -> list[dict[str, Any]]:
    if output_dir is None:
        return []
    return [json.loads(path.read_text(encoding="utf-8")) for path in (output_dir / ERRORS).glob("rank-*.json")]


def report_error(output_dir: str | Path, rank: int, error: BaseException) -> int:
    """Leave a rank's error where the launcher finds it; returns the exit status that the rank should leave with.

    For errors that every rank raises alike the launcher names none.
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
    write_atomically(Path(output_dir, ERRORS, f"rank-{rank}.json"), json.dumps(report))
    return status


@contextmanager
def _made_room(decided: Plan) -> Iterator[None]:
    """Prepare output_dir and write the two YAML files; an earlier run is put aside and deleted only when this one
    has something to show: a run that ends without checkpoint and adapter puts it back.
    """
    directory = Path(decided.run.output_dir)
    aside = directory / ".previous"
    try:
        shutil.rmtree(directory / ERRORS, ignore_errors=True)
        if decided.run.overwrite:
            if _products(directory):
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
            for path in _products(directory):
                path.rename(aside / path.name)
        decided.write(directory)
    except OSError as error:
        consequence = f"{error.strerror}: {error.filename}."
        fix = "choose a directory that you may write, on a disk with room"
        raise ConfigError(Problem(key="output_dir", value=str(directory), consequence=consequence, fix=fix)) from None
    try:
        yield
    finally:
        made = (directory / ADAPTER).exists() or checkpoints(directory)
        if aside.is_dir() and not made:
            for path in _products(directory):
                shutil.rmtree(path, ignore_errors=True)
            for path in aside.iterdir():
                path.rename(directory / path.name)
        shutil.rmtree(aside, ignore_errors=True)


def _products(directory: Path) -> list[Path]:
    """What an earlier run left in its directory."""
    named = [directory / name for name in (ADAPTER, "logs", "results.json")]
    return [path for path in (*named, *directory.glob("checkpoint-*")) if path.exists()]


def _print_dry_run(command: Launch, problems: Sequence[Problem]) -> None:
    print(f"\ncommand\n  {command}\n\nenvironment")
    for name, value in command.environment.items():
        print(f"  {name}={value}")
    print(f"\nconfig file\n{command.yaml}", flush=True)
    # A dry run writes nothing, so what is in the output directory only matters to the run itself.
    blocking = [problem for problem in problems if problem.key not in ("output_dir", "training.resume")]
    for problem in problems:
        if problem not in blocking:
            print(replace(problem, severity="warning"), file=sys.stderr)
    raise_errors(blocking)


def _own_overrides(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split accelerate's flags from those that the plan decides: these become overrides, so that the plan stays true.

    Raises `ConfigError` for flags that would contradict the plan.
    """
    kept: list[str] = []
    overrides: list[str] = []
    words = [part for word in flags for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        name = word.lstrip("-").replace("-", "_")
        if name in ("num_processes", "num_process") and words:
            overrides.append(f"distributed.num_processes={words.pop(0)}")
        elif name in ("cpu", "use_cpu"):
            overrides.append("distributed.device=cpu")
        elif name == "mixed_precision" and words:
            precision = words.pop(0)
            if precision not in ("no", "fp16", "bf16"):
                fix = "use one of: no, fp16, bf16"
                raise ConfigError(Problem(key=word, value=precision, consequence="unknown precision.", fix=fix))
            overrides += [f"training.{kind}={str(kind == precision).lower()}" for kind in ("bf16", "fp16")]
        elif name in _DECIDED:
            consequence = "contradicts the plan that `launch RUN.yaml` makes."
            raise ConfigError(Problem(key=word, consequence=consequence, fix=_DECIDED[name]))
        else:
            kept.append(word)
            if words and _takes_value(word):
                kept.append(words.pop(0))
    return kept, overrides


_DECIDED = {
    "config_file": "drop it (the config is generated), or launch your own script with it",
    "gpu_ids": "set CUDA_VISIBLE_DEVICES for the whole command",
    "num_machines": "launch your own script with it; a run is planned for one machine so far",
    "machine_rank": "launch your own script with it; a run is planned for one machine so far",
    "use_megatron_lm": "launch your own script with it",
    "use_parallelism_config": "launch your own script with it",
    "multi_gpu": "drop it, or set distributed.strategy",
    "use_fsdp": "set distributed.strategy",
    "use_deepspeed": "launch your own script with it",
    "tpu": "launch your own script with it",
    "module": "drop it (the training module is ours)",
    "m": "drop it (the training module is ours)",
    "no_python": "drop it (the training module is ours)",
}


def _takes_value(flag: str) -> bool:
    """Whether an `accelerate launch` flag is followed by a value; unknown flags are left to accelerate to refuse."""
    action = _accelerate_parser()._option_string_actions.get(flag)
    return action is not None and action.nargs != 0


@functools.cache
def _accelerate_parser() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    parser: argparse.ArgumentParser = launch_command_parser()
    return parser


def _parse_accelerate(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse with accelerate's own parser, which prints its usage and leaves with status 2 for a bad flag."""
    parsed: argparse.Namespace = _accelerate_parser().parse_args(list(arguments))
    return parsed
