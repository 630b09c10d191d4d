"""How many processes there are to be: told inside a launch, and outside of one with the command that launches them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from ..adapters import environment
from ..config.accelerate_config import AccelerateConfig
from ..errors import ConfigError, LaunchError, Problem, UnslothAccelError, counted, raise_errors
from ..hardware.hardware import Hardware
from ..launch.clean_environment import environment_for_launch
from ..strategies import STRATEGIES, usual
from .asked import value_problems


def is_launched() -> bool:
    """Return whether a launcher started this process: accelerate, ours, or torchrun."""
    return environment.promise() is not None or "LOCAL_RANK" in os.environ


def settled_count(
    num_gpus: int | None, *, strategy: str | None = None, launch: bool = False, hardware: Hardware | None = None
) -> int:
    """Return the number of processes that train, this one among them.

    In a launched process it is the launcher's; raises `ConfigError` where another was asked for, or another strategy,
    and anywhere for what is no number.
    Elsewhere it is 1, with one GPU or on a CPU; where several GPUs are there and wanted, raises `LaunchError` with the
    command and exit status 2. With `launch` the script is launched from here, and this process ends with its status.
    """
    raise_errors(value_problems({"num_gpus": num_gpus}))
    if is_launched():
        return _of_the_launch(num_gpus, strategy)
    found = hardware or Hardware.detect()
    gpus = len(found.devices)
    wanted = num_gpus or max(gpus, 1)
    if gpus and wanted > gpus:
        consequence = f"{counted(gpus, 'GPU')} can be seen here ({found.reason})."
        raise ConfigError(Problem(key="num_gpus", value=wanted, consequence=consequence, fix=f"num_gpus={gpus}"))
    if wanted == 1:
        if strategy not in (None, usual(1).name):
            print(f"unsloth_accel: strategy={strategy}: one process trains, with nothing to share out", flush=True)
        return 1
    if strategy == usual(1).name:
        consequence = f"is one process, and num_gpus={wanted} are {wanted} of them."
        fix = f"num_gpus=1, or strategy={usual(wanted).name}"
        raise ConfigError(Problem(key="strategy", value=strategy, consequence=consequence, fix=fix))
    if strategy and not gpus and not STRATEGIES[strategy].runs_on_cpu:
        lacks = "there is no GPU here, and accelerate has no FSDP on a CPU"
        if launch:
            fix = f"strategy={usual(wanted).name}, or num_gpus=1"
            consequence = f"{lacks}: each process would train alone."
            raise ConfigError(Problem(key="strategy", value=strategy, consequence=consequence, fix=fix))
        print(f"unsloth_accel: strategy={strategy}: {lacks}; this one process trains", flush=True)
        return 1
    config = config_for(wanted, strategy, found)
    if launch:
        _launch(config)
    commands = "\n".join(f"  {line}" for line in launch_commands(config))
    if gpus:
        needs = (
            f"{wanted} GPUs need {wanted} processes, and this is one. Fix: launch the script, by ours or accelerate's:"
        )
        raise LaunchError(f"{needs}\n{commands}", 2)
    needs = f"num_gpus={wanted}: there is no GPU here, and this one process trains on the CPU; {wanted} of them:"
    print(f"unsloth_accel: {needs}\n{commands}", flush=True)
    return 1


def _of_the_launch(num_gpus: int | None, strategy: str | None) -> int:
    count, promised = environment.world_size(), environment.promise()
    if num_gpus not in (None, count):
        consequence = f"{counted(count, 'process')} launched: the script would train with another batch than it says."
        fix = f"num_gpus={count}, or launch it with --num_processes {num_gpus}"
        raise ConfigError(Problem(key="num_gpus", value=num_gpus, consequence=consequence, fix=fix))
    running = promised.strategy if promised else None
    if running is None and os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":  # torchrun's, or one process
        running = usual(count).name
    if strategy is not None and running is not None and strategy != running:
        consequence = f"the launch is of {running}, which is what runs."
        fix = f'leave it out, or "unsloth-accel config --strategy {strategy} --gpus {count} --out {strategy}.yaml"'
        raise ConfigError(Problem(key="strategy", value=strategy, consequence=consequence, fix=fix))
    return count


def config_for(count: int, strategy: str | None, hardware: Hardware) -> AccelerateConfig:
    """Return the accelerate config of `count` processes on `hardware`, its GPUs or its CPU."""
    bf16 = all(device.has_bf16 for device in hardware.devices)
    return AccelerateConfig(
        strategy=strategy or usual(count).name,
        num_processes=count,
        device="cuda" if hardware.devices else "cpu",
        mixed_precision=("bf16" if bf16 else "fp16") if hardware.devices else "no",
    )


def launch_commands(config: AccelerateConfig) -> list[str]:
    """Return the commands that launch this script: the one for the config, ours, and accelerate's in place of ours."""
    words = shlex.join(script_words() or ["SCRIPT.py"])
    file = f"{config.strategy}.yaml"
    device = " --cpu" if config.device == "cpu" else f" --mixed-precision {config.mixed_precision}"
    return [
        f"unsloth-accel config --strategy {config.strategy} --gpus {config.num_processes}{device} --out {file}",
        f"unsloth-accel launch --config_file {file} {words}",
        f"accelerate launch --config_file {file} {words}",
    ]


def script_words() -> list[str]:
    """Return the script that runs and its arguments, as a launcher takes them; empty in a notebook or a shell."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and getattr(main, "__file__", None):
        return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    if "ipykernel" in sys.modules or not getattr(main, "__file__", None):
        return []
    return [sys.argv[0], *sys.argv[1:]]


def _launch(config: AccelerateConfig) -> None:
    """Launch this script in as many processes as `config` says, wait, and end this one with the same status."""
    words = script_words()
    if not words:
        consequence = "there is no script that could be launched: this is a notebook or a shell."
        fix = "unsloth_accel.notebook_launch(plan) in a notebook"
        raise ConfigError(Problem(key="launch", value=True, consequence=consequence, fix=fix))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, f"{config.strategy}.yaml")
        config.write(file)
        command = [sys.executable, "-m", "unsloth_accel.cli", "launch", "--config_file", str(file), *words]
        status = subprocess.run(command, env=environment_for_launch()).returncode
    raise SystemExit(status)


class PlainErrors:
    """Errors of this package as their message, with their own exit status, in a script that nobody launched."""

    def __init__(self) -> None:
        self._previous: Any = None

    def show(self) -> None:
        """Show them so from now on; a launched process does so anyway."""
        if self._previous is None and not is_launched():
            self._previous, sys.excepthook = sys.excepthook, self._hook

    def undo(self) -> None:
        """Leave errors to what showed them before."""
        if self._previous is not None and sys.excepthook == self._hook:
            sys.excepthook = self._previous
        self._previous = None

    def _hook(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, UnslothAccelError):
            self._previous(kind, error, traceback)
            return
        print(f"unsloth_accel: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_status)
