"""unsloth-accel completion: a script that completes the commands and their options in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from .options import command_parser

EXAMPLES = """\
examples:
  mkdir -p ~/.local/share/bash-completion/completions ~/.zfunc
  unsloth-accel completion bash > ~/.local/share/bash-completion/completions/unsloth-accel
  unsloth-accel completion zsh > ~/.zfunc/_unsloth-accel"""


def parser() -> argparse.ArgumentParser:
    made = command_parser("completion", "Print a completion script.", EXAMPLES)
    made.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    import shtab

    print(shtab.complete(_everything(), asked.shell))
    return 0


def _everything() -> argparse.ArgumentParser:
    """One parser with every command, for shtab."""
    import shtab

    from .main import COMMANDS

    whole = argparse.ArgumentParser(prog="unsloth-accel")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        own = importlib.import_module(f".{name}", __package__).parser()
        # The description would be repeated in every shell's menu.
        added = commands.add_parser(name, help=summary, parents=[own], add_help=False, conflict_handler="resolve")
        for action in added._actions:
            if str(action.metavar or "").endswith((".yaml", "FILE", "DIRECTORY", ".py")):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return whole
