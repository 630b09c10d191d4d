"""unsloth-accel: thin commands over the library."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

from ..errors import UnslothAccelError, nearest
from ..launch.broken_streams import leave_broken_streams
from ..version import __version__

COMMANDS = {
    "init": "write a commented run.yaml, or make one of another tool's file; what to add to a script",
    "plan": "what would run here or elsewhere, why, and what was rejected",
    "config": "print or write an accelerate config",
    "validate": "every problem of a config or run, before anything starts",
    "preview": "the rows as the model will see them, which tokens are trained, and their lengths",
    "launch": "plan and launch a run, or launch your own script with a config",
    "report": "a page about a run: loss, speed, memory, warnings; or two runs compared",
    "merge": "write the 16-bit model that base and adapter make, with its tokenizer",
    "verify": "train the same rows on one process and on several, and compare",
    "estimate": "the GPU memory a model needs, per strategy and term",
    "doctor": "what is wrong with this machine or installation, and the fix",
    "completion": "shell completion for bash, zsh or tcsh",
}
EPILOG = """\
unsloth-accel COMMAND --help shows its options and an example.
exit status: 0 all well; 2 something to correct, nothing started; 1 problems found (validate, doctor, verify);
otherwise the failing rank's own"""


def usage() -> str:
    lines = [f"unsloth-accel {__version__}: run Unsloth on more than one GPU, through Hugging Face Accelerate", ""]
    lines += ["usage: unsloth-accel COMMAND …", ""]
    lines += [f"  {name:<11} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join([*lines, "", EPILOG])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that can't show × must not end a command
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # at the interpreter's end a broken pipe would be a traceback
        return status
    except UnslothAccelError as error:
        print("\n".join(f"unsloth-accel: {line}" for line in str(error).split("\n")), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("unsloth-accel: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `unsloth-accel plan … | head`
        leave_broken_streams()
        return 141


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    name = words[0]
    if name in ("-V", "--version"):
        print(f"unsloth-accel {__version__}")
        return 0
    if name not in COMMANDS:
        fix = nearest(name, COMMANDS, "unsloth-accel ")
        print(f"unsloth-accel: unknown command {name!r}. Fix: {fix}", file=sys.stderr)
        return 2
    command = importlib.import_module(f".{name}", __package__)
    return int(command.run(words[1:]))
