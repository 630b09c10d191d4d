"""unsloth-accel config: an accelerate config for a strategy and a number of GPUs, or for a planned run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ConfigError, Problem, raise_errors
from .options import add_hardware, chosen_hardware, command_parser, run_from_words, write_out

if TYPE_CHECKING:
    from ..config.accelerate_config import AccelerateConfig

EXAMPLES = """\
examples:
  unsloth-accel config --strategy fsdp2 --gpus 4
  unsloth-accel config --strategy fsdp2 --gpus 4 --decoder-layer Qwen3DecoderLayer --out fsdp2.yaml
  unsloth-accel config --strategy ddp --gpus 8 --machines 2 --main-process-ip 10.0.0.1
  unsloth-accel config run.yaml --out accelerate.yaml"""


def parser() -> argparse.ArgumentParser:
    from ..strategies import STRATEGIES

    made = command_parser(
        "config",
        "Print or write an accelerate config: for a strategy and a number of GPUs, or as a run is planned.",
        EXAMPLES,
        usage="unsloth-accel config --strategy STRATEGY --gpus N [options]\n"
        "       unsloth-accel config RUN.yaml [key=value ...] [--hardware HARDWARE] [--out FILE.yaml]",
    )
    made.add_argument("words", nargs="*", metavar="RUN.yaml", help="plan this run and take its config")
    add_hardware(made)
    made.add_argument("--strategy", choices=STRATEGIES.names)
    made.add_argument("--gpus", type=number, metavar="N", help="GPUs of one machine (with --strategy)")
    made.add_argument("--machines", type=number, metavar="N", help="number of machines; default 1")
    made.add_argument("--main-process-ip", metavar="ADDRESS", help="address of the first of several machines")
    made.add_argument("--mixed-precision", choices=["no", "fp16", "bf16"], help="precision of training; default bf16")
    layer = "class that FSDP wraps as one unit, for example Qwen3DecoderLayer; default LlamaDecoderLayer"
    made.add_argument("--decoder-layer", action="append", metavar="CLASS", help=layer)
    made.add_argument("--load-in-4bit", action="store_true", help="the model is loaded in 4 bit")
    made.add_argument("--cpu", action="store_true", help="processes on a CPU instead of GPUs")
    made.add_argument("--out", metavar="FILE.yaml", help="write the config there instead of printing it")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    from ..artifacts.own_files import in_the_way
    from ..artifacts.run_directory import MARK
    from ..config.accelerate_config import AccelerateConfig, launch_lines

    mark = f"{MARK} config"
    if asked.out:
        raise_errors(in_the_way(asked.out, lambda text: mark in text.partition("\n")[0]))
    if asked.words:
        config = _planned(asked)
    else:
        count = _count(asked)
        config = AccelerateConfig(
            strategy=asked.strategy,
            num_processes=count,
            num_machines=asked.machines or 1,
            main_process_ip=asked.main_process_ip,
            device="cpu" if asked.cpu else "cuda",
            mixed_precision="no" if asked.cpu else asked.mixed_precision or "bf16",
            decoder_layers=tuple(asked.decoder_layer or AccelerateConfig.decoder_layers),
            load_in_4bit=asked.load_in_4bit,
        )
    lines = launch_lines(config, asked.out or "FILE.yaml")
    text = config.to_yaml(f"{config.strategy}, {mark}. Launch:\n\n{lines}")
    if not asked.out:
        print(text, end="")
        return 0
    write_out(asked.out, text)
    print(f"wrote {asked.out}")
    return 0


def _planned(asked: argparse.Namespace) -> AccelerateConfig:
    from ..planning import planner
    from ..validation.run_checks import setting_problems

    decided = {
        "--strategy": (asked.strategy, f"distributed.strategy={asked.strategy}"),
        "--gpus": (asked.gpus, f"distributed.num_processes={asked.gpus}, or --hardware"),
        "--machines": (asked.machines, "--hardware 2x8xH100"),
        "--mixed-precision": (asked.mixed_precision, f"training.{asked.mixed_precision}=true"),
        "--decoder-layer": (asked.decoder_layer, "drop it: the model's own is taken"),
        "--load-in-4bit": (asked.load_in_4bit or None, "model.load_in_4bit=true"),
        "--cpu": (asked.cpu or None, "distributed.device=cpu"),
    }
    raise_errors(
        [
            Problem(key=name, value=value, consequence="is decided by the plan here.", fix=fix)
            for name, (value, fix) in decided.items()
            if value is not None
        ]
    )
    description, hardware = run_from_words(asked.words), chosen_hardware(asked)
    raise_errors(setting_problems(description, hardware))
    config = planner.plan(description, hardware).accelerate_config
    return replace(config, main_process_ip=asked.main_process_ip)


def _count(asked: argparse.Namespace) -> int:
    """Processes over all machines; raises `ConfigError` for numbers that make no config."""
    if asked.strategy is None:
        fix = "--strategy ddp --gpus 2, or give a RUN.yaml"
        raise ConfigError(Problem(key="--strategy", consequence="is missing, and no run is given.", fix=fix))
    from ..strategies import STRATEGIES, usual

    strategy = STRATEGIES[asked.strategy]
    gpus = 1 if asked.gpus is None and strategy.one_process else asked.gpus
    if gpus is None:
        consequence = "is missing: accelerate needs the number of processes."
        raise ConfigError(Problem(key="--gpus", consequence=consequence, fix="--gpus 2"))
    machines = 1 if asked.machines is None else asked.machines
    for name, value in (("--gpus", gpus), ("--machines", machines)):
        if value < 1:
            raise ConfigError(Problem(key=name, value=value, consequence="must be at least 1.", fix=f"{name} 2"))
    total = gpus * machines
    if strategy.one_process != (total == 1):
        consequence = f"single is one process and the others need at least two; this is {total}."
        fix = f"--strategy {usual(total).name}" if total > 1 else f"--gpus 2, or --strategy {usual(1).name}"
        raise ConfigError(Problem(key="--strategy", value=asked.strategy, consequence=consequence, fix=fix))
    if asked.cpu and not strategy.runs_on_cpu:
        consequence = "accelerate has no FSDP on a CPU: each process would train alone."
        fix = f"--strategy {usual(total).name}"
        raise ConfigError(Problem(key="--strategy", value=asked.strategy, consequence=consequence, fix=fix))
    return int(total)


def number(text: str) -> int:
    """Parse a number of machines or GPUs for argparse; refuse more than 65536."""
    value = int(text)
    if value > 65536:
        raise argparse.ArgumentTypeError("must be at most 65536")
    return value
