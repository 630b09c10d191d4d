"""unsloth-accel validate: every problem of configs and runs, before anything starts."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import counted, errors
from ..validation.rules import Context, Finding, Report, check_document, folded, named, read_text, repaired, validate
from .options import command_parser
from .tables import print_lines

EXAMPLES = """\
examples:
  unsloth-accel validate ddp.yaml run.yaml
  unsloth-accel validate runs/llama-8b                    # run.planned.yaml and accelerate.yaml, and whether they agree
  unsloth-accel validate --fix my_config.yaml             # writes my_config.fixed.yaml
  unsloth-accel validate --json my_config.yaml

python -m unsloth_accel.validation.rules RULES.md writes what every rule is about; --json tells those apart that share a
line. exit status: 0 no errors, 1 errors, 2 wrong usage"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "validate",
        "Say everything that is wrong with accelerate configs and run descriptions, with line, consequence "
        "and fix. Nothing is started and no GPU is needed.",
        EXAMPLES,
    )
    made.add_argument("files", nargs="+", metavar="FILE", help="a config, a run, or a directory with both")
    made.add_argument("--json", action="store_true", help="print a list of problems as JSON")
    made.add_argument("--fix", action="store_true", help="write a repaired copy, NAME.fixed.yaml, beside each file")
    made.add_argument("--hardware", metavar="TEXT", help="check for this hardware too, for example 8xH100-80GB")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_args(words)
    hardware = None
    if asked.hardware:
        from ..hardware.hardware import Hardware

        hardware = Hardware.parse(asked.hardware)
    reports = validate(asked.files, Context(hardware=hardware, here=hardware is None))
    if asked.json:
        _print(json.dumps([_as_json(problem) for report in reports for problem in report.problems], indent=2))
    else:
        for report in reports:
            print_lines(_entries(report))
    if asked.fix:
        for report in reports:
            # JSON readers want nothing but JSON on stdout.
            _print(_fixed(report), to_stderr=asked.json)
    return 1 if errors(problem for report in reports for problem in report.problems) else 0


def _print(text: str, to_stderr: bool = False) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = stream.encoding or "utf-8"
    if text:
        # A name may hold what the terminal can't show.
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _entries(report: Report) -> Iterator[tuple[str, str]]:
    """Yield a report's lines, each a prefix and a text."""
    told = folded(report.problems)
    count = len(errors(told))
    numbers = [(count, "error"), (len(told) - count, "warning")]
    said = ", ".join(counted(number, word) for number, word in numbers if number)
    yield "", f"{report.document.file}: {said or 'nothing to correct'}"
    for problem in told:
        where = "" if problem.line is None else str(problem.line)
        text = str(named(problem)).removeprefix(f"{problem.severity}: ")
        text = text.removeprefix(f"{problem.file}:{where}: ").removeprefix(f"{problem.file}: ")
        yield f"  {where:>4} {problem.severity:<8} ", text


def _as_json(problem: Finding) -> dict[str, Any]:
    fields = ("file", "line", "severity", "key", "value", "consequence", "fix", "rule")
    return {name: _plain(getattr(problem, name)) for name in fields}


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: dates and infinite numbers as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _fixed(report: Report) -> str:
    """Write the repaired copy of one file, and say what was repaired and what is left."""
    document = report.document
    if not any(problem.repairs for problem in report.problems):
        return f"{document.file}: nothing to repair without a choice" if report.problems else ""
    path = Path(document.file)
    target = path.with_name(f"{path.stem}.fixed{path.suffix}")
    text, mended, _ = repaired(document, report.problems)
    if not mended:
        return f"{document.file}: nothing that can be repaired line by line"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return f"{target} is there already; nothing was written"
    except OSError as error:
        return f"{target} can't be written: {error.strerror}"
    lines = [f"{target} written"]
    lines += [f"  repaired  {problem.line or '':>4} {problem.key}: {problem.fix}" for problem in mended]
    left = check_document(read_text(text, str(target), document.context))
    lines += [f"  left      {problem.line or '':>4} {problem.key}: {problem.fix} [{problem.rule}]" for problem in left]
    return "\n".join(lines)
