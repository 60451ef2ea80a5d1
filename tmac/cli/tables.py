"""A table on the terminal: by rich where it is installed, else plain."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

PIPE_WIDTH = 160


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Prints the rows below their head; columns in `numbers` are aligned to the right."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(title, *_plain(head, rows), "", sep="\n")
        return
    table: Any = Table(title=Text(title), title_justify="left")
    for name in head:
        table.add_column(Text(name), justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
