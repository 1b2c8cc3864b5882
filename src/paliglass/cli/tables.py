"""Tables: framed at a terminal; in a pipe or a file tab-separated lines, as programs read them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from paliglass.errors import printable

__all__ = ["print_table"]


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    figures: bool = True,
    framed: bool = True,
) -> None:
    """One table on stdout, its title above it. Cells are shown as they are, control codes escaped.

    head: the columns' names; none: no such line. figures: columns but the first stand right.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    names = [printable(name) for name in head]
    if not sys.stdout.isatty():
        lines = [*([names] if head else []), *cells]
        print("\n".join([*([printable(title)] if title else []), *map("\t".join, lines)]))
        return
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # names are no markup

    table = Table(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        show_header=bool(head),
        box=HEAVY_HEAD if framed else None,
        padding=(0, 1) if framed else (0, 2, 0, 0),
    )
    for place, name in enumerate(names or (cells[0] if cells else [])):
        table.add_column(Text(name), justify="right" if figures and place else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
