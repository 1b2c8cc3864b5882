"""The application, and what every command has: `--debug`, and errors of one line."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, get_type_hints

import typer

from paliglass import __version__
from paliglass.errors import PaliglassError, printable

app = typer.Typer(
    help="PaliGemma in clear glass: run it, train it, and see through it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"paliglass {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """PaliGemma in clear glass: run it, train it, and see through it."""


DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
)


def command(function: Callable[..., None], on: typer.Typer = app) -> Callable[..., None]:
    """Makes a function a command of the application, or of the group `on`.

    A parameter whose type is a dataclass stands for all its fields, so that commands can share
    options. A field's metadata are what `typer.Option` takes, for classes that must not know of
    it. Errors become one line on stderr and an exit code; see `clear_errors`.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {
        name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        group = groups.get(parameter.name)
        parameters += (
            [parameter.replace(annotation=hints[parameter.name])]
            if group is None
            else _field_parameters(group)
        )
    parameters.append(DEBUG)

    @functools.wraps(function)
    def guarded(debug: bool, **values: Any) -> None:
        with clear_errors(debug):
            for name, group in groups.items():
                fields = [field.name for field in dataclasses.fields(group)]
                values[name] = group(**{field: values.pop(field) for field in fields})
            function(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in parameters]
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    on.command()(guarded)
    return function


def _field_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in dataclasses.fields(group):
        hint, default = hints[field.name], field.default
        if field.metadata:  # the flag is given, else a bool would get a --no-… too
            flag = f"--{field.name.replace('_', '-')}"
            hint = Annotated[hint, typer.Option(flag, **field.metadata)]
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hint))
    return parameters


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with one line on stderr."""
    complain(message)
    raise typer.Exit(code)


def complain(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)


@contextmanager
def clear_errors(debug: bool) -> Iterator[None]:
    """Turns what the block raises into one line on stderr and an exit code.

    With `debug`, errors pass through as they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold bytes that are no text; printing it must not end the run.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.BadParameter):
        raise
    except KeyboardInterrupt as interrupt:
        fail("interrupted" + "".join(f"; {hint}" for hint in interrupt.args), 130)
    except BrokenPipeError:
        # Nobody reads on. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            raise
        fail(explain(error))


def explain(error: Exception) -> str:
    """What a user can make of an error."""
    text = str(error)
    if isinstance(error, PaliglassError):
        return text
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return (
            "the memory is full; a smaller --batch-size, --dtype bfloat16 or a smaller model "
            "needs less"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"unexpected {type(error).__name__}: {text} (run again with --debug for the traceback)"
