"""Scores for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from paliglass.cli.messages import level, note
from paliglass.errors import printable

if TYPE_CHECKING:
    from paliglass.evaluation.cases import Score

__all__ = ["print_scores", "tell_progress", "warn"]


def tell_progress(name: str, done: int, count: int) -> None:
    """How many of a set's questions are answered, at a terminal."""
    if sys.stderr.isatty() and level() != "quiet":
        end = "\n" if done == count else ""
        print(f"\r{name}: {done} of {count} answered", end=end, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line on stderr about what a run goes on without."""
    note(message)


def print_scores(scores: Mapping[str, Mapping[str, Score]]) -> None:
    """A table for each set of scores."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, rows in scores.items():
        # `Text`: names come from files, and are no markup.
        table = Table("task", title=Text(printable(name)), title_justify="left")
        for head in ("score", "baseline", "floor", "target", "n"):
            table.add_column(head, justify="right")
        for task, value in rows.items():
            figures = (value.score, value.baseline, value.floor, value.target)
            cells = ("" if figure is None else f"{figure:.3f}" for figure in figures)
            table.add_row(Text(printable(task)), *cells, str(value.n))
        console.print(table)
