"""unsloth-accel report: a page about a run, or about two side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import ConfigError, Problem
from .options import command_parser

EXAMPLES = """\
examples:
  unsloth-accel report runs/llama-1b                        # writes runs/llama-1b/report.html
  unsloth-accel report runs/llama-1b --open                 # and shows it in the browser
  unsloth-accel report --compare runs/llama-1b runs/llama-1b-r64 --out compared.html"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "report",
        "Write one HTML page about a run: what ran and why, loss, speed, memory, warnings, and how to load "
        "the result. It needs no network. A run that failed, or still trains, has a report too.",
        EXAMPLES,
    )
    made.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run's output_dir")
    made.add_argument("--compare", action="store_true", help="set the second of two runs beside the first")
    made.add_argument("--out", metavar="FILE.html", help="file to write; default: report.html in the run's directory")
    made.add_argument("--open", action="store_true", help="show the page in the default browser")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    expected = 2 if asked.compare else 1
    if len(asked.runs) != expected:
        consequence = f"{expected} run{'s are' if asked.compare else ' is'} needed, {len(asked.runs)} given."
        fix = "unsloth-accel report RUN_DIR, or unsloth-accel report --compare RUN_A RUN_B"
        raise ConfigError(Problem(key="RUN_DIR", value=" ".join(asked.runs), consequence=consequence, fix=fix))
    from .. import report

    if asked.compare:
        path = report.write_comparison(asked.runs[0], asked.runs[1], asked.out)
    else:
        path = report.write(asked.runs[0], asked.out)
    print(f"wrote {path}")
    if asked.open:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            print("no browser was found here; the page is one file that can be copied and opened elsewhere")
    return 0
