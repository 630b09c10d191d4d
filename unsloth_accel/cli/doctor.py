"""unsloth-accel doctor: what is wrong with this machine or installation, and the fix."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from ..doctor import TIME_LIMIT, Result, examine, exit_status
from .options import command_parser

EXAMPLES = """\
examples:
  unsloth-accel doctor
  unsloth-accel doctor --quick
  unsloth-accel doctor --json > doctor.json

exit status: 0 no error (warnings may be there); 1 at least one error"""
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "doctor",
        "Check the installation against Unsloth's bounds, and the GPUs, their links, NCCL, disk, memory "
        "and environment of this machine; then launch processes that sum a tensor. Each finding comes with its fix.",
        EXAMPLES,
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON")
    made.add_argument("--quick", action="store_true", help="start no processes: leave the all-reduce out")
    limit = "limit of each all-reduce (default %(default)g)"
    made.add_argument("--timeout", type=float, default=TIME_LIMIT, metavar="SECONDS", help=limit)
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    results = examine(quick=asked.quick, time_limit=asked.timeout)
    status = exit_status(results)
    if asked.json:
        print(json.dumps({"exit_status": status, "results": [asdict(result) for result in results]}, indent=2))
    else:
        _show(lines(results))
    return status


def lines(results: Sequence[Result]) -> list[str]:
    """The report: one aligned line a result, its fix below, and a count at the end."""
    width = max((len(result.name) for result in results), default=0)
    made = []
    for result in results:
        made.append(f"{result.status:<7}  {result.name:<{width}}  {result.detail}")
        if result.fix:
            reference = f"  [{result.reference}]" if result.reference else ""
            made.append(f"{'':<7}  {'':<{width}}  fix: {result.fix}{reference}")
    count = Counter(result.status for result in results)
    errors, warnings = (f"{count[word]} {word}{'s' * (count[word] != 1)}" for word in ("error", "warning"))
    return [*made, "", f"{errors}, {warnings} in {len(results)} results"]


def _show(report: Sequence[str]) -> None:
    if not sys.stdout.isatty():
        print("\n".join(report))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line in report:
        text = Text(line)
        for word, colour in COLOURS.items():
            if line.startswith(f"{word} "):
                text.stylize(colour, 0, len(word))
        console.print(text, soft_wrap=True)
