"""Tables and lines that fit the console: no figure is cut, no line is wider, none ends in blanks where it is piped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED = 160
"""Characters of a line where neither a terminal nor COLUMNS says how many there are."""
NARROW = 24
"""Characters below which a text is put under what it belongs to."""
STYLES = {"the same": "bold green", "not the same": "bold red", "verdict": "bold", "total": "bold"}


def console() -> Console:
    """Return a console as wide as the terminal or COLUMNS; elsewhere rich would fold tables at 80 columns. Square
    brackets are text to it: markers of a chat, names of files and columns have them."""
    from rich.console import Console

    terminal = Console(markup=False)
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=PIPED, markup=False)


def show(*parts: Any) -> None:
    """Print what rich can print; blanks with which it fills lines up go only to a terminal."""
    from rich.console import Group

    terminal = console()
    if terminal.is_terminal:
        terminal.print(Group(*parts))
        return
    with terminal.capture() as printed:
        terminal.print(Group(*parts))
    print("\n".join(line.rstrip() for line in printed.get().rstrip("\n").split("\n")))


def tables(rows: Sequence[Sequence[str]], width: int) -> Iterator[Table | str]:
    """Yield tables of `rows`, a header first: beside the first column as many as fit `width`, the others below.

    A cell breaks at its blanks before a column goes below, so that figures stay whole.
    """
    from rich.table import Table
    from rich.text import Text

    padding = 2
    label, *columns = ([*column] for column in zip_longest(*rows, fillvalue=""))
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    first = max(1, min(max(map(len, label)), width - padding - max(least, default=0) - padding))
    room = width - first - padding
    whole = [max(map(len, column)) for column in columns]
    wanted = whole if sum(whole) + padding * len(whole) <= room else least
    while columns:
        fitting = 1
        while fitting < len(columns) and sum(wanted[: fitting + 1]) + padding * (fitting + 1) <= room:
            fitting += 1
        shown, columns = columns[:fitting], columns[fitting:]
        made = Table(box=None, header_style="bold")
        made.add_column(Text(label[0]), width=first, overflow="fold")
        for column, size in zip(shown, wanted, strict=False):
            made.add_column(Text(column[0]), width=min(size, room - padding), justify="right", overflow="fold")
        wanted = wanted[fitting:]
        for cells in zip(label[1:], *(column[1:] for column in shown), strict=True):
            if any(cells[1:]):
                texts = [Text(cell, style=STYLES.get(cell, "")) for cell in cells]
                made.add_row(*texts, style=STYLES.get(cells[0], ""))
        yield made
        if columns:
            yield ""


def print_lines(entries: Iterable[tuple[str, str]], colours: Mapping[str, str] | None = None) -> None:
    """Print each text behind its prefix, wrapped beside it on a terminal; elsewhere programs read lines.

    `colours` are those of a prefix's first word.
    """
    if not sys.stdout.isatty():
        print("\n".join(f"{prefix}{text}".rstrip() for prefix, text in entries))
        return
    from rich.text import Text

    terminal = console()
    for prefix, text in entries:
        for line in wrapped(prefix, text, terminal):
            said, word = Text(line), (line.split() or [""])[0]
            if prefix.startswith(word) and (style := (colours or {}).get(word)):
                said.stylize(style, line.index(word), line.index(word) + len(word))
            terminal.print(said, soft_wrap=True)


def wrapped(prefix: str, text: str, terminal: Console) -> list[str]:
    """Return lines no wider than `terminal`: `text` beside `prefix`, or below it where little room is left."""
    from rich.cells import cell_len
    from rich.text import Text

    if cell_len(prefix + text) <= terminal.width:
        return [f"{prefix}{text}".rstrip()]

    def folded(said: str, width: int) -> list[str]:
        return [line.plain.rstrip() for line in Text(said).wrap(terminal, width, overflow="fold")]

    if terminal.width - len(prefix) >= NARROW or not prefix.strip():
        indent = min(len(prefix), terminal.width - NARROW)
        first, *more = folded(text, terminal.width - indent)
        return [f"{prefix[:indent]}{first}".rstrip(), *(f"{'':<{indent}}{line}" for line in more)]
    above = folded(prefix, terminal.width)
    return [*above, *(f"  {line}" for line in folded(text, terminal.width - 2))]
