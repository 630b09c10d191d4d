"""unsloth-accel doctor: what is wrong with this machine or installation, and the fix."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from ..doctor import TIME_LIMIT, Result, examine, exit_status
from ..errors import counted
from .options import command_parser
from .tables import print_lines

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
        "Check the installation against Unsloth's bounds; the GPUs, their links, NCCL, disk, memory and "
        "environment of this machine; the Hub, its token, proxies and reporters; then launch processes that sum a "
        "tensor. Each finding comes with its fix.",
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
        print_lines(entries(results), COLOURS)
    return status


def entries(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The report, each line as a prefix and a text: a result, its fix below, and a count at the end."""
    width = max((len(result.name) for result in results), default=0)
    made = []
    for result in results:
        made.append((f"{result.status:<7}  {result.name:<{width}}  ", result.detail))
        if result.fix:
            reference = f"  [{result.reference}]" if result.reference else ""
            made.append((" " * (width + 11), f"fix: {result.fix}{reference}"))
    count = Counter(result.status for result in results)
    found = f"{counted(count['error'], 'error')}, {counted(count['warning'], 'warning')}"
    return [*made, ("", ""), ("", f"{found} in {counted(len(results), 'result')}")]
