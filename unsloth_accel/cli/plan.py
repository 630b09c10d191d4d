"""unsloth-accel plan: what would run here, or on other hardware, and why."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from ..config.run_config import RunConfig
    from ..planning.plan import Plan

EXAMPLES = """\
examples:
  unsloth-accel plan examples/configs/quickstart.yaml
  unsloth-accel plan --hardware 8xH100-80GB model.name=unsloth/Llama-3.1-8B-Instruct batch.global_size=64
  unsloth-accel plan --hardware 2xT4 --json model.name=unsloth/Qwen3-8B model.load_in_4bit=true batch.global_size=16
  unsloth-accel plan run.yaml --write runs/llama-1b"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="unsloth-accel plan",
        usage="unsloth-accel plan [RUN.yaml] [key=value ...] [--hardware HARDWARE] [--json] [--write DIRECTORY]",
        description="Decide strategy, processes, batch and memory for a run, with a reason for everything.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("words", nargs="*", metavar="RUN.yaml", help="a run's description, and key=value overrides")
    add_hardware(made)
    made.add_argument("--json", action="store_true", help="print the plan as JSON")
    made.add_argument("--write", metavar="DIRECTORY", help="write accelerate.yaml, run.yaml and plan.json there")
    return made


def add_hardware(made: argparse.ArgumentParser) -> None:
    """The option that plans for hardware elsewhere."""
    words = "plan for other hardware: 2xT4, 8xH100-80GB, 2x8xH100 (machines x GPUs), cpu; default: this machine"
    made.add_argument("--hardware", metavar="HARDWARE", help=words)


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    from ..capabilities.probe import here
    from ..hardware.hardware import Hardware
    from ..planning import planner

    description = read_run(asked.words)
    hardware = Hardware.detect() if asked.hardware is None else Hardware.parse(asked.hardware)
    made = planner.plan(description, hardware, capabilities=here(), elsewhere=asked.hardware is not None)
    if asked.write is not None:
        if not asked.write:
            fix = "--write runs/my-run"
            raise ConfigError(Problem(key="--write", consequence="names no directory.", fix=fix))
        made.write(asked.write)
    if asked.json:
        print(json.dumps(made.to_dict(), indent=2))
        return 0
    console = wide_console()
    console.print(made)
    if asked.write:
        console.print(f"\nwrote {_written(made, asked.write)}", highlight=False, markup=False)
    return 0


def _written(made: Plan, directory: str) -> str:
    missing = [
        key for key, value in (("data.path", made.run.data.path), ("output_dir", made.run.output_dir)) if not value
    ]
    without = f" (without {' and '.join(missing)}: add them before you launch it)" if missing else ""
    return f"{directory}/accelerate.yaml and {directory}/run.yaml{without}"


def wide_console() -> Console:
    """For tables: as wide as the terminal or COLUMNS; elsewhere rich would fold lines at 80 columns."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=160)


def read_run(words: Sequence[str]) -> RunConfig:
    """The run that a YAML file and overrides describe, in any order; data and output_dir may be missing."""
    from ..config.read_run import is_override, load

    overrides = [word for word in words if is_override(word)]
    files = [word for word in words if not is_override(word)]
    if len(files) > 1 or (files and not files[0].endswith((".yaml", ".yml"))):
        fix = "give one RUN.yaml, and key=value words such as model.name=unsloth/Llama-3.1-8B-Instruct"
        raise ConfigError(Problem(key=files[-1], consequence="is neither an override nor the one YAML file.", fix=fix))
    if not words:
        fix = "give a RUN.yaml, or model.name=… batch.global_size=…"
        raise ConfigError(Problem(key="RUN.yaml", consequence="there is no run to plan.", fix=fix))
    return load(files[0] if files else None, overrides, to_plan=True)
