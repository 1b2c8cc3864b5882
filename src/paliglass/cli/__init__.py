"""The command line. Modules that need torch are imported inside commands: help comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from paliglass.cli.app import app

__all__ = ["app", "main"]

# Each adds its commands, in the order in which help lists them.
for _name in (
    *("tasks", "contrastive", "models", "trace", "lab", "learn", "serve"),
    *("train", "data", "evaluate", "export", "bench"),
):
    import_module(f"paliglass.cli.{_name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line, by default this process's own.

    Always ends in SystemExit: 0 done, 1 failed, 2 bad usage, 130 interrupted.
    """
    app(args=arguments, prog_name="paliglass")
