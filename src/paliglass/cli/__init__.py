"""The command line. Modules that need torch are imported inside commands: help comes at once."""

from __future__ import annotations

from collections.abc import Sequence

# isort: off  (the order in which help lists the commands)
from paliglass.cli import (
    bench,
    contrastive,
    data,
    evaluate,
    learn,
    models,
    tasks,
    trace,
    train,
    world,
)
from paliglass.cli.app import app

# isort: on

__all__ = [
    *("app", "bench", "contrastive", "data", "evaluate", "learn", "main", "models", "tasks"),
    *("trace", "train", "world"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line, by default this process's own.

    Always ends in SystemExit: 0 done, 1 failed, 2 bad usage, 130 interrupted.
    """
    app(args=arguments, prog_name="paliglass")
