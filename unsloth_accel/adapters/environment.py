"""What a launched process must know and set before torch, accelerate or Unsloth are imported.

`import unsloth_accel` runs `prepare_process()`, which only reads the environment and a small file: a millisecond.

Mends, in accelerate 1.15:
- MULTI_GPU with `use_cpu: true`: `accelerate launch` starts the processes but doesn't tell them to use the CPU, so a
  plain `Accelerator()` forms no group and every process trains alone. Set ACCELERATE_USE_CPU in the process itself.
- GRPO under FSDP2, in Unsloth 2026.10.9: each rank decides by its own rows whether it packs them, and checks a packing
  with forward passes of its own. Where every forward pass gathers weights, ranks then wait for each other for ever.
- A config has no key for Unsloth's own sharding (an unknown key is an error), so a config file of `fsdp2_native` is
  DDP's. Its variables stand in the file's comment, from where they are set here.
Refuses:
- a config that asks for several processes and gets one (MULTI_CPU without MPI);
- an import that came too late for a variable to count (`adapters.import_order`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import TracebackType

from ..artifacts.run_directory import ERRORS
from ..config.promise import OTHER_KINDS, PROMISE, Promise, number, promise_of_config
from ..errors import UnslothAccelError, counted, raise_errors
from ..launch.rank_errors import is_told, report_error
from ..strategies import STRATEGIES
from . import import_order
from .gloo_exit import leave_in_peace

_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish", "tcsh", "csh")
CPU_TRAINER_WARNING = "Could not build the patched trl.trainer.sft_trainer"


class WorldError(UnslothAccelError):
    """The processes that run are not the ones that were asked for."""

    on_every_rank = True


def prepare_process(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what a launched process needs and stop one that was launched wrongly; do nothing outside a launch.

    A variable that is set already is left. Raises `WorldError` when the accelerate config asked for more processes than
    were started, `ConfigError` when the strategy lacks something, and `ImportOrderError` when something has read a
    variable already that had to be set here.
    """
    promised = promise(environ)
    if promised is None:
        return
    show_own_errors_plainly()
    if promised.num_processes > 1:
        leave_in_peace()
    check_world_size(promised, environ)
    from ..capabilities.probe import lacking

    raise_errors(lacking(promised.strategy, promised.device))
    before = dict(environ)
    strategy = STRATEGIES.get(promised.strategy)
    alike = strategy.process_environment if strategy else {}
    for name, value in (*promised.environment.items(), *alike.items()):
        environ.setdefault(name, value)
    if promised.device == "cpu":
        environ["ACCELERATE_USE_CPU"] = "true"
        # On a machine with GPUs Unsloth would load onto them while Accelerate trains on the CPU.
        environ.setdefault("UNSLOTH_FORCE_CPU", "1")
        import logging

        # It misses a kernel for 4-bit weights, in every process of every run, whether 4-bit weights are in it or not.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        # Sharding imports unsloth.models.rl, which on a CPU finds Unsloth's own trainer for CPUs in TRL's place, made
        # without a source that it could patch, and warns. That trainer stays and is the right one; on GPUs rl comes
        # first and finds TRL's (unsloth/_cpu_init.py, unsloth/models/rl.py; Unsloth 2026.10.9).
        logging.getLogger("unsloth_zoo.log").addFilter(lambda record: CPU_TRAINER_WARNING not in record.getMessage())
    import_order.check_import_order({name for name, value in environ.items() if before.get(name) != value})


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Processes that the launcher started, from WORLD_SIZE; 1 outside a launch."""
    return number(environ.get("WORLD_SIZE")) or 1


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Processes that the launcher started on this machine, from LOCAL_WORLD_SIZE; 1 outside a launch."""
    return number(environ.get("LOCAL_WORLD_SIZE")) or 1


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank among all processes, from RANK; 0 outside a launch."""
    return number(environ.get("RANK")) or 0


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank among those of its machine, from LOCAL_RANK; 0 outside a launch."""
    return number(environ.get("LOCAL_RANK")) or 0


def promise(environ: Mapping[str, str] = os.environ) -> Promise | None:
    """What this process was told to be part of, or None when it was not launched.

    Said by `unsloth-accel launch` in the environment; otherwise read from the config file that the parent process,
    an `accelerate launch`, was given; otherwise what torchrun's variables say.
    """
    if environ.get(PROMISE):
        return Promise(**json.loads(environ[PROMISE]))
    found, count = from_launcher_config(_parent_command()), world_size(environ)
    if found is None and "LOCAL_RANK" in environ and count > 1:
        return Promise(num_processes=count, made_by="WORLD_SIZE")
    return found


def from_launcher_config(command: Sequence[str]) -> Promise | None:
    """The promise of `accelerate launch --config_file FILE …`; None if `command` is something else.

    `--num_processes` on the command line wins over the file, as it does in accelerate. A DeepSpeed config makes no
    promise here: this package has no adapter for it.
    """
    arguments = _launch_arguments(command) or []
    file = _option(arguments, "config_file")
    if file is None or any(word.lstrip("-").replace("-", "_") in OTHER_KINDS for word in arguments):
        return None
    from ..config.safe_reader import read_yaml

    config = read_yaml(file)
    if not config.readable:
        return None
    return promise_of_config(config.values, file, number(_option(arguments, "num_processes")), config.text)


def check_world_size(promised: Promise, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `WorldError` unless as many processes were started as were promised."""
    started, asked = world_size(environ), promised.num_processes
    if started == asked:
        return
    asks = f"{promised.made_by} asks for {counted(asked, 'process')}"
    raise WorldError(
        f"{asks} and {started} started: the run would train with a batch "
        f"{asked}/{started} of the one asked for. Fix: distributed_type: MULTI_GPU (with use_cpu: true on a CPU), as "
        "unsloth-accel config writes it; `accelerate launch` starts one process for MULTI_CPU."
        if started == 1
        else f"{asks} and {started} started. Fix: launch it with --num_processes {asked}."
    )


def show_own_errors_plainly() -> None:
    """Show this package's errors as their message, once, instead of one traceback per process; leave any error to the
    launcher, where that tells it."""
    previous = sys.excepthook
    if getattr(previous, "_unsloth_accel", False):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if is_told() and (place := os.environ.get(ERRORS)):
            report_error(place, rank(), error)
        elif not isinstance(error, UnslothAccelError):
            previous(kind, error, traceback)
        elif not error.on_every_rank:
            print(f"unsloth_accel: rank {rank()}: {error}", file=sys.stderr, flush=True)
        elif rank() == 0:
            print(f"unsloth_accel: {error}", file=sys.stderr, flush=True)

    hook._unsloth_accel = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _parent_command() -> list[str]:
    """The command line of the parent process; empty where it can't be read."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (OSError, UnicodeDecodeError):
        return []


def _launch_arguments(command: Sequence[str]) -> list[str] | None:
    """The launcher's own words after `accelerate launch`, up to the script; None if it is another program's line.

    Only the launcher itself counts: `timeout 60 accelerate launch …` starts it, and is no launcher.
    """
    words = list(command)
    if not words or not Path(words.pop(0)).name.startswith("python"):
        return None
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[2:] if words[0] in ("-W", "-X") else words[1:]
    program = words[1:2] if words[:1] == ["-m"] else [Path(word).name for word in words[:1]]
    rest = words[2:] if words[:1] == ["-m"] else words[1:]
    if program in (["accelerate"], ["accelerate.commands.accelerate_cli"]) and rest[:1] == ["launch"]:
        rest = rest[1:]
    elif program not in (["accelerate.commands.launch"], ["accelerate-launch"]):
        return None
    # The script's own --cpu is not the launcher's.
    return list(takewhile(lambda word: not word.endswith(".py") and word not in ("-m", "--module"), rest))


def _option(command: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, with either spelling of its words."""
    spellings = {f"--{name}", f"--{name.replace('_', '-')}"}
    for word, following in zip(command, [*command[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if option in spellings:
            return value or following
    return None


def _parent_if_launcher() -> int | None:
    command = _parent_command()
    known = PROMISE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if "LOCAL_RANK" in os.environ and not known:  # another launcher's, or given by hand in a shell, which may close
        known = Path(command[0] if command else "").name.lstrip("-") not in _SHELLS
    return os.getppid() if known or _launch_arguments(command) is not None else None


def _note_launcher() -> None:
    global LAUNCHER
    LAUNCHER = _parent_if_launcher()


LAUNCHER = _parent_if_launcher()
"""Number of the process that launched this one; None where nobody did. Noted when it is imported, since later the
parent may be another one: then the launcher is gone."""
os.register_at_fork(after_in_child=_note_launcher)  # notebook_launcher's ranks are forks
