"""How a module of the workshop becomes a command, `python -m workshop.NAME`, and common options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from paliglass.cli.app import command

CACHE = Path(".cache/world")
WorldCache = Annotated[
    Path,
    typer.Option(
        file_okay=False, help="Folder for the world's artwork, fetched when it is first needed."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Of the processor, for torch.")]


def run(*functions: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Runs a function as a command line, by default this process's own; several as subcommands.

    Its parameters become options (see `cli.app.command`), its docstring the help. Always ends in
    SystemExit: 0 done, 1 failed, 2 bad usage, 130 interrupted.
    """
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=len(functions) > 1,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=sys.modules[functions[0].__module__].__doc__ if len(functions) > 1 else None,
    )
    for function in functions:
        command(function, on=app)
    app(args=arguments)
