"""unsloth-accel preview: the rows of a run as the model will see them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from ..data.tokenise import COMPARED
from ..errors import ConfigError, Problem, counted
from .options import add_run, command_parser, positive, run_from_words
from .tables import console as wide_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ..data.preview import Preview, PreviewedRow

MOST = 10_000
EXAMPLES = """\
examples:
  unsloth-accel preview run.yaml
  unsloth-accel preview run.yaml data.train_on=responses --rows 1
  unsloth-accel preview run.yaml model.max_seq_length=1024 --most 1000000 --json"""


def parser() -> argparse.ArgumentParser:
    made = command_parser(
        "preview",
        "Show the first rows as tokens, those that are trained marked; then the lengths of all rows, what "
        "padding wastes and packing would gain. Loads the model's tokenizer only.",
        EXAMPLES,
        usage="unsloth-accel preview RUN.yaml [key=value ...] [--rows N] [--most N] [--json]",
    )
    add_run(made)
    made.add_argument("--rows", type=positive, default=3, metavar="N", help="rows to show; default 3")
    most = f"rows to count; default the first {MOST}"
    made.add_argument("--most", type=positive, default=MOST, metavar="N", help=most)
    made.add_argument("--json", action="store_true")
    return made


def run(words: Sequence[str]) -> int:
    asked = parser().parse_intermixed_args(words)
    description = run_from_words(asked.words)
    if not description.data.names:
        fix = "name the rows, data.path=…"
        raise ConfigError(Problem(key="data.path", consequence="is missing: there is nothing to show.", fix=fix))
    from ..data.preview import preview_rows

    with redirect_stdout(sys.stderr):  # Unsloth greets on stdout, where --json is to be read
        found = preview_rows(description, asked.rows, asked.most)
    for warning in found.warnings:
        print(warning, file=sys.stderr)
    if asked.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    console = wide_console()
    for row in found.rows:
        _print_row(console, row, found)
    _print_figures(console, found)
    return 0


def _print_row(console: Console, row: PreviewedRow, found: Preview) -> None:
    limit = found.limit
    if found.answered:
        over = f", over {limit}: it is dropped" if row.length > limit else ""
        beside = f"; columns for rewards: {', '.join(row.columns)}" if row.columns else ""
        console.print(f"row {row.place}: a prompt of {row.length} tokens{over}{beside}", style="bold")
        console.print(_marked(row, colours=console.is_terminal), highlight=False)
        console.print()
        return
    cut = f", cut to {limit}" if row.length > len(row.ids) else f", over {limit}" if row.length > limit else ""
    nothing = "" if row.trained else ": NOTHING TO LEARN, it is dropped"
    side = f", {row.side}" if row.side else ""
    console.print(f"row {row.place}{side}: {row.length} tokens{cut}, {row.trained} trained{nothing}", style="bold")
    console.print(_marked(row, colours=console.is_terminal), highlight=False)
    console.print()


def _marked(row: PreviewedRow, *, colours: bool) -> Text:
    """Return the row with trained tokens green and underlined; without colours, between ⟦ and ⟧."""
    from rich.text import Text

    text = Text()
    for part, trained in row.parts:
        if colours:
            text.append(part, style="green underline" if trained else "dim")
        else:
            text.append(f"⟦{part}⟧" if trained else part)
    return text


def _print_figures(console: Console, found: Preview) -> None:
    figures = found.lengths
    most = max(number for *_, number in figures.histogram)
    row = "answer" if found.kind == "preference" else "row"
    rows = counted(figures.rows, row)
    rows = rows if found.whole else f"the first {rows} (--most counts more)"
    console.print(f"tokens of {rows}, {found.kind}", style="bold")
    for start, end, number in figures.histogram:
        bar = "▇" * max(round(30 * number / most), number > 0)
        mark = "  over the limit" if start > found.limit else ""
        console.print(f" {start:>7,} – {end:<7,} {number:>8,} {bar}{mark}".rstrip(), highlight=False)
    over = f"{counted(figures.over, row)} {'is' if figures.over == 1 else 'are'} longer"
    lines = [
        f"length    mean {figures.mean:,.0f}, median {figures.median:,.0f}, 95 % up to {figures.p95:,}, "
        f"longest {figures.longest:,}",
        f"limit     {found.limit:,}: {over} ({figures.over / figures.rows:.1%})",
    ]
    if found.answered:
        lines.append("trained   the completions that the model writes")
    else:
        lines += [
            f"trained   {found.trained:.1%} of the tokens"
            + (f"; {counted(found.empty, 'row')} with nothing to learn, dropped" if found.empty else ""),
            f"padding   {figures.padding:.1%} of a batch of {counted(found.batch, 'row')}, where batches are padded",
        ]
    if found.markers:
        question, answer = (json.dumps(text, ensure_ascii=False) for text in found.markers)
        lines.append(f"markers   an answer is what stands between {answer} and the next {question}")
    if found.kind not in COMPARED and not found.answered:
        packed = f"{counted(figures.rows, 'row')} into {figures.packed:,} of {found.limit:,} tokens"
        lines.append(f"packing   {packed} ({figures.rows_each:.1f} each)")
    total = sum(found.sources.values())
    for name, rows_of_it in found.sources.items():
        lines.append(f"share     {rows_of_it / total:.1%} of the rows, {rows_of_it:,}, are of {name}")
    lines += [f"note      {note}" for note in found.notes]
    console.print("\n".join(lines), highlight=False)
