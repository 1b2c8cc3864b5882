"""The command line. Modules that need torch are imported inside commands: help comes at once."""

from __future__ import annotations

from collections.abc import Sequence

# isort: off  (the order in which help lists them)
from paliglass.cli import tasks, contrastive, models, trace, learn
from paliglass.cli import train, data, world, evaluate, bench

# isort: on
    tasks,
    contrastive,
    models,
    trace,
    learn,
    train,
    data,
    world,
    evaluate,
    bench,
)  # isort: skip  (the order in which help lists them)
from paliglass.cli.app import app

__all__ = [
    "app",
    "bench",
    "contrastive",
    "data",
    "evaluate",
    "learn",
    "main",
    "models",
    "tasks",
    "trace",
    "train",
    "world",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line, by default this process's own.

    Always ends in SystemExit: 0 done, 1 failed, 2 bad usage, 130 interrupted.
    """
    app(args=arguments, prog_name="paliglass")
