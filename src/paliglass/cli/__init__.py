"""The command line. Modules that need torch are imported inside commands: help comes at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from paliglass.cli.app import app
from paliglass.cli.help import Group, called
from paliglass.cli.messages import has_complained
from paliglass.cli.processes import complain_once, only_the_first_speaks

__all__ = ["app", "main"]

# Typer hands out only those that are derived from it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

for _name in (
    *("tasks", "annotate", "contrastive", "search", "models", "trace", "lab", "learn"),
    *("serve", "compare_server"),
    *("train", "data", "evaluate", "export", "bench"),
):
    import_module(f"paliglass.cli.{_name}")
for _group in app.registered_groups:
    _group.cls = Group


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line, by default this process's own.

    Always ends in SystemExit: 0 done, 1 failed, 2 bad usage, 130 interrupted.
    """
    _open_closed_streams()
    with only_the_first_speaks():
        try:
            code = app(args=arguments, prog_name="paliglass", standalone_mode=False) or 0
        except _UsageError as error:
            given = sys.argv[1:] if arguments is None else arguments
            code = _complain_of_usage(error, given)
        if code == 130 and not has_complained():  # before the command began
            complain_once("interrupted")
    raise SystemExit(code)


def _complain_of_usage(error: Any, arguments: Sequence[str]) -> int:
    """One line, as of any other error, with the way to the help; the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = _explain(error)
        if message.startswith(("Missing ", "No such ", "Invalid ", "Option ", "Got ")):  # Typer's
            message = message[0].lower() + message[1:]
        if type(error).__name__ == "NoSuchOption":
            message += _as_it_is(error.option_name, arguments)
        path = error.ctx.command_path if error.ctx else "paliglass"
        complain_once(f"{message} (see {path} --help)")
    return int(error.exit_code)


def _as_it_is(option: str, arguments: Sequence[str]) -> str:
    """How a file, or words, that were taken for an option are taken for what they are."""
    for argument in arguments:
        is_file = os.path.lexists(argument)
        if argument[:1] == "-" and option.strip("-") in argument and (is_file or " " in argument):
            return f'; for "{argument}" write -- before it' + f", or ./{argument}" * is_file
    return ""


def _explain(error: Any) -> str:
    """What is wrong, in our words where pydantic found it, by which typer checks values."""
    if hasattr(error.__cause__, "errors") and error.param is not None:
        from paliglass.formats.records import explain_validation

        message = explain_validation(error.__cause__.errors()[0], called(error.param), str)
        if message is not None:
            return message
    return str(error.format_message().removeprefix("Invalid value: ").rstrip("."))


def _open_closed_streams() -> None:
    """Who closed a stream (`>&-`) wants nothing of it; a file must not get its number either."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
