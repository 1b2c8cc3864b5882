"""Scores for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from paliglass.cli.messages import level, note
from paliglass.cli.tables import print_table
from paliglass.errors import printable

if TYPE_CHECKING:
    from paliglass.evaluation.cases import Score

__all__ = ["print_scores", "tell_progress", "warn"]


def tell_progress(name: str, done: int, count: int) -> None:
    """How many of a set's questions are answered, at a terminal."""
    if sys.stderr.isatty() and level() != "quiet":
        end = "\n" if done == count else ""
        print(
            f"\r{printable(name)}: {done} of {count} answered", end=end, file=sys.stderr, flush=True
        )


def warn(message: str) -> None:
    """One line on stderr about what a run goes on without."""
    note(message)


def print_scores(scores: Mapping[str, Mapping[str, Score]]) -> None:
    """A table for each set of scores."""
    for name, found in scores.items():
        rows = []
        for task, value in found.items():
            figures = (value.score, value.baseline, value.floor, value.target)
            cells = ("" if figure is None else f"{figure:.3f}" for figure in figures)
            rows.append([task, *cells, str(value.n)])
        print_table(["task", "score", "baseline", "floor", "target", "n"], rows, title=name)
