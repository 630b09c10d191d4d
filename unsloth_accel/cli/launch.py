"""unsloth-accel launch: plan a run and launch it, or launch a user's own script with an accelerate config."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .options import command_parser

EXAMPLES = """\
examples:
  unsloth-accel launch run.yaml training.max_steps=2
  unsloth-accel launch run.yaml --dry-run
  unsloth-accel launch --config_file ddp.yaml train.py
  unsloth-accel launch --config_file mine.yaml --allow fsdp-config-ignored train.py"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "launch",
        "Plan the run for this machine, write its accelerate config and launch it; or launch your own "
        "script, where every flag of accelerate launch works. The config is validated first.",
        EXAMPLES,
        usage=(
            "unsloth-accel launch RUN.yaml [key=value ...] [--dry-run] [--resume-if-any] [accelerate launch flags]\n"
            "       unsloth-accel launch --config_file CONFIG.yaml [flags] [--dry-run] [--allow RULE] script.py "
            "[args ...]"
        ),
    )
    made.add_argument("words", nargs="*", metavar="RUN.yaml | script.py", help="what to launch, and its overrides")
    made.add_argument("--dry-run", action="store_true", help="show plan, command, environment and YAML; run nothing")
    resume = "go on where output_dir holds a whole checkpoint, else start; do nothing where the run is finished"
    made.add_argument("--resume-if-any", action="store_true", help=resume)
    allow = "rules of validate, with commas or repeated, whose errors are to be warnings: their ids stand in brackets"
    made.add_argument("--allow", metavar="RULE", action="append", help=allow)
    made.add_argument("--config_file", metavar="CONFIG.yaml", help="launch your own script with this config")
    return made


def run(words: Sequence[str]) -> int:
    # accelerate's own flags pass through, so argparse only writes the help.
    if list(words) in (["--help"], ["-h"]):
        parser().print_help()
        return 0
    from ..artifacts.log_file import keep_printing
    from ..launch.launcher import launch

    keep_printing()
    launch(words)
    return 0
