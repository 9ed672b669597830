"""Tables for terminals of any width: what does not fit goes below, and no figure is ever cut off."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..system.files import printable


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], summed: bool = False) -> None:
    """Print rows under their head, the first column with each part of a table that is too wide.

    summed: the last row sums up the others.

    Without a terminal (a file, a pipe) it is as wide as necessary.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console = Console(width=10_000)
    rest = list(range(1, len(head)))
    while rest:
        count = next((n for n in range(len(rest), 1, -1) if _fits(console, head, rows, rest[:n], summed)), 1)
        part, rest = rest[:count], rest[count:]
        if _fits(console, head, rows, part, summed):
            console.print(_table(head, rows, part, summed))
            continue
        for row in rows:  # a name of any length, broken where the terminal ends
            print(row[0])
            for column in part:
                print(f"  {head[column]}: {row[column]}")
    sys.stdout.flush()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], summed: bool) -> Table:
    table = Table()
    for column in (0, *columns):
        table.add_column(head[column], no_wrap=True)
    for row in rows:
        if summed and row is rows[-1]:
            table.add_section()
        table.add_row(*(Text(row[column]) for column in (0, *columns)))  # no markup
    return table


def _fits(
    console: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: Sequence[int],
    summed: bool,
) -> bool:
    """Whether each cell of these columns has its line."""
    table = _table(head, rows, columns, summed)
    return table.__rich_measure__(console, console.options.update(width=10_000)).maximum <= console.width
