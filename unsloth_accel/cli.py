"""unsloth-accel: thin commands over the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import __version__
from .problems import UnslothAccelError

USAGE = """\
unsloth-accel {version}: run Unsloth on more than one GPU, through Hugging Face Accelerate

usage:
  unsloth-accel launch RUN.yaml [key=value ...] [--dry-run] [accelerate launch flags]
      Plan the run for this machine, write its accelerate config, launch it.
      Example: unsloth-accel launch examples/configs/quickstart.yaml training.max_steps=2

  unsloth-accel launch --config_file CONFIG.yaml [flags] [--dry-run] script.py [args ...]
      Launch your own script with an accelerate config; every accelerate launch flag works.
      Example: unsloth-accel launch --config_file accelerate_configs/ddp.yaml examples/sft.py

  unsloth-accel --version | --help

exit status: 0 trained; 2 something to correct, nothing started; otherwise the failing rank's own"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help") or words in (["launch", "--help"], ["launch", "-h"]):
        print(USAGE.format(version=__version__))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"unsloth-accel {__version__}")
        return 0
    if words[0] != "launch":
        print(f"unsloth-accel: unknown command {words[0]!r}. Fix: unsloth-accel --help", file=sys.stderr)
        return 2
    from .launcher import launch

    try:
        launch(words[1:])
    except UnslothAccelError as error:
        print("\n".join(f"unsloth-accel: {line}" for line in str(error).split("\n")), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("unsloth-accel: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
