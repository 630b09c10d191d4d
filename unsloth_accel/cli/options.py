"""Helpers that the commands share: parsers, options, numbers, reading a run's words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError, Problem

if TYPE_CHECKING:
    from ..config.run_config import RunConfig
    from ..hardware.hardware import Hardware


def command_parser(name: str, description: str, examples: str, usage: str | None = None) -> argparse.ArgumentParser:
    """The parser of `unsloth-accel NAME`; `examples` stand below its help as they are."""
    form = argparse.RawDescriptionHelpFormatter
    prog = f"unsloth-accel {name}"
    return argparse.ArgumentParser(
        prog=prog, usage=usage, description=description, epilog=examples, formatter_class=form
    )


def add_run(made: argparse.ArgumentParser, count: str = "*") -> None:
    """Add the words that describe a run, for `run_from_words`; `count` is argparse's nargs."""
    made.add_argument("words", nargs=count, metavar="RUN.yaml", help="a run's description, and key=value overrides")


def add_hardware(made: argparse.ArgumentParser) -> None:
    """Add the option that plans for other hardware."""
    words = (
        "plan for other hardware: 2xT4, 8xH100-80GB, 2x8xH100 (machines x GPUs), kaggle, colab, cpu, or a card's own "
        "memory, bandwidth and dense fp16 rate: 2x24GB,1008GB/s,165TFLOPS; default: this machine"
    )
    made.add_argument("--hardware", metavar="HARDWARE", help=words)


def chosen_hardware(asked: argparse.Namespace) -> Hardware:
    """Return the hardware that `--hardware` names, or this machine's without it."""
    from ..hardware.hardware import Hardware

    return Hardware.detect() if asked.hardware is None else Hardware.parse(asked.hardware)


def count(text: str) -> int:
    """Parse a number from 1 to 65536, for argparse."""
    number = int(text)
    if not 1 <= number <= 65536:
        raise argparse.ArgumentTypeError("must be 1 to 65536")
    return number


def positive(text: str) -> int:
    """Parse a whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def price(text: str) -> float:
    """Parse a price from 0, for argparse."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number from 0")
    return number


def run_from_words(words: Sequence[str]) -> RunConfig:
    """The run that a YAML file and overrides describe, in any order; data and output_dir may be missing."""
    from ..config.read_run import is_override
    from ..validation.rules import SUFFIXES
    from ..validation.run_checks import read

    overrides = [word for word in words if is_override(word)]
    files = [word for word in words if not is_override(word)]
    if len(files) > 1 or (files and not files[0].endswith(SUFFIXES)):
        fix = "give one RUN.yaml, and key=value words such as model.name=unsloth/Llama-3.1-8B-Instruct"
        raise ConfigError(Problem(key=files[-1], consequence="is neither an override nor the one YAML file.", fix=fix))
    if not words:
        fix = "give a RUN.yaml, or model.name=… batch.global_size=…"
        raise ConfigError(Problem(key="RUN.yaml", consequence="there is no run to plan.", fix=fix))
    return read(files[0] if files else None, overrides, to_plan=True)


def write_out(path: str, text: str) -> None:
    """Write what `--out` asked for; raises `ConfigError` where it can't be written."""
    from ..files import write_atomically

    try:
        write_atomically(path, text)
    except (OSError, ValueError) as error:
        fix, reason = "choose a file that you may write", getattr(error, "strerror", None) or error
        raise ConfigError(Problem(key="--out", value=path, consequence=f"{reason}.", fix=fix)) from None
