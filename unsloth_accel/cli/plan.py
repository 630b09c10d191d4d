"""unsloth-accel plan: what would run here, or on other hardware, and why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..artifacts.run_directory import PLANNED_YAML
from ..errors import ConfigError, Problem, raise_errors
from .options import add_hardware, add_run, chosen_hardware, command_parser, price, run_from_words
from .tables import show

if TYPE_CHECKING:
    from ..planning.plan import Plan

EXAMPLES = """\
examples:
  unsloth-accel plan run.yaml
  unsloth-accel plan --hardware 8xH100-80GB model.name=unsloth/Llama-3.1-8B-Instruct batch.global_size=64
  unsloth-accel plan --hardware 2xT4 --json model.name=unsloth/Qwen3-8B model.load_in_4bit=true batch.global_size=16
  unsloth-accel plan run.yaml --hardware 8xH100 --price 2.49
  unsloth-accel plan run.yaml --write runs/llama-1b"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "plan",
        "Decide strategy, processes, batch and memory for a run, with a reason for everything.",
        EXAMPLES,
        usage="unsloth-accel plan [RUN.yaml] [key=value ...] [--hardware HARDWARE] [--price PRICE] [--json] "
        "[--write DIRECTORY]",
    )
    add_run(made)
    add_hardware(made)
    made.add_argument("--json", action="store_true", help="print the plan as JSON")
    written = "write accelerate.yaml, run.planned.yaml and plan.json there"
    cost = "price of one GPU for an hour, to say what the whole run costs on all GPUs of the hardware, used or not"
    made.add_argument("--price", type=price, metavar="PRICE", help=cost)
    made.add_argument("--write", metavar="DIRECTORY", help=written)
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    from ..capabilities.probe import here
    from ..planning import planner
    from ..validation.inputs import place_problems
    from ..validation.run_checks import setting_problems, told_with

    description = run_from_words(asked.words)
    hardware = chosen_hardware(asked)
    problems = setting_problems(description, hardware)
    elsewhere = asked.hardware is not None
    if not elsewhere:  # elsewhere the files may lie elsewhere
        problems += [replace(problem, severity="warning") for problem in place_problems(description)]
    try:
        with told_with(problems):
            made = planner.plan(description, hardware, capabilities=here(), elsewhere=elsewhere, price=asked.price)
        raise_errors(problems)
    except ConfigError as error:
        _warn(problems, told={(problem.key, problem.consequence) for problem in error.problems})
        raise
    if asked.price is not None and (made.time is None or made.time.cost is None):
        missing = "the run's steps are" if made.time is None else "its speed is"
        fix = "training.max_steps=…, or data.path with rows that lie here" if made.time is None else "drop it"
        said = f"nothing can be said of the money: {missing} unknown."
        problems.append(Problem(key="--price", value=asked.price, consequence=said, fix=fix, severity="warning"))
    _warn(problems)
    if asked.write is not None:
        if not asked.write:
            fix = "--write runs/my-run"
            raise ConfigError(Problem(key="--write", consequence="names no directory.", fix=fix))
        made.write(asked.write)
    if asked.json:
        print(json.dumps(made.to_dict(), indent=2))
        return 0
    show(made)
    if asked.write:
        print(f"\nwrote {_written(made, asked.write)}")
    return 0


def _warn(problems: Sequence[Problem], told: Collection[tuple[str, str]] = ()) -> None:
    """Print the warnings among `problems` to stderr, without those `told` as errors: pairs of key and consequence."""
    for problem in problems:
        if problem.severity == "warning" and (problem.key, problem.consequence) not in told:
            print(problem, file=sys.stderr)


def _written(made: Plan, directory: str) -> str:
    needed = {"data.path": made.run.data.names, "output_dir": made.run.output_dir}
    missing = [key for key, value in needed.items() if not value]
    without = f" (without {' and '.join(missing)}: add them before you launch it)" if missing else ""
    return f"{directory}/accelerate.yaml and {directory}/{PLANNED_YAML}{without}"
