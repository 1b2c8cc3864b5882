"""The application, and what every command has: errors of one line, `--quiet`, `--verbose`."""

from __future__ import annotations

import copy
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
from typer.models import OptionInfo

from paliglass import __version__
from paliglass.cli.help import GENERAL, Command, Group
from paliglass.cli.messages import complain, set_level
from paliglass.cli.processes import complain_once, refuse_several
from paliglass.errors import PaliglassError, not_installed

__all__ = ["app", "clear_errors", "command", "complain", "explain", "fail"]

app = typer.Typer(
    cls=Group,
    help="PaliGemma in clear glass: run it, train it, and see through it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # `help` lays it out
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(show: bool) -> None:
    if show:
        print(f"paliglass {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version.",
            rich_help_panel=GENERAL,
        ),
    ] = False,
) -> None:
    """PaliGemma in clear glass: run it, train it, and see through it.

    `paliglass COMMAND --help` tells what a command takes. Exit codes: 0 done; 1 failed, or some
    pictures could not be read; 2 bad usage; 130 interrupted.
    """
    with clear_errors(debug=False):
        refuse_several(context.invoked_subcommand)


@dataclasses.dataclass(frozen=True)
class MessageOptions:
    """What is said on the way."""

    panel = GENERAL

    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes; errors only.")
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what is loaded, how, and how fast.")
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise typer.BadParameter("--quiet and --verbose: choose one")
        set_level("quiet" if self.quiet else "verbose" if self.verbose else "normal")


def command(function: Callable[..., None], on: typer.Typer = app) -> Callable[..., None]:
    """Makes a function a command of the application, or of the group `on`.

    A parameter whose type is a dataclass stands for all its fields, so that commands can share
    options; a class attribute `panel` is their title in the help. A field's metadata are what
    `typer.Option` takes, for classes that must not know of it. Errors become one line on stderr
    and an exit code; see `clear_errors`.
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
    parameters += _field_parameters(MessageOptions)

    def take(group: Any, values: dict[str, Any]) -> Any:
        try:
            return group(**{some.name: values.pop(some.name) for some in dataclasses.fields(group)})
        except PaliglassError as error:  # of options that do not go together
            raise typer.BadParameter(str(error)) from None

    @functools.wraps(function)
    def guarded(**values: Any) -> None:
        messages = take(MessageOptions, values)
        with clear_errors(messages.debug):
            for name, group in groups.items():
                values[name] = take(group, values)
            function(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in parameters]
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    on.command(cls=Command)(guarded)
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
        hint = _in_panel(hint, _panel_of(group, field.name))
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hint))
    return parameters


def _panel_of(group: Any, field: str) -> str | None:
    """The title of the class that the field was defined in."""
    definer = next(c for c in group.__mro__ if field in inspect.get_annotations(c))
    return getattr(definer, "panel", None)


def _in_panel(hint: Any, panel: str | None) -> Any:
    """Annotated[…, option] with the option under a title, if it has none of its own."""
    options = (some for some in getattr(hint, "__metadata__", ()) if isinstance(some, OptionInfo))
    option = next(options, None)
    if panel is None or option is None or option.rich_help_panel:
        return hint
    option = copy.copy(option)
    option.rich_help_panel = panel
    return Annotated[hint.__origin__, option]


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command with one line on stderr."""
    complain(message)
    raise typer.Exit(code)


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
        complain_once("interrupted" + "".join(f"; {hint}" for hint in interrupt.args))
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read on, as `head`, has had enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit() from None
    except Exception as error:
        if debug:
            raise
        complain_once(explain(error))
        raise typer.Exit(1) from None


def explain(error: Exception) -> str:
    """What a user can make of an error."""
    text = str(error)
    if isinstance(error, PaliglassError):
        return text
    if isinstance(error, ModuleNotFoundError) and error.name:
        return not_installed(error.name.partition(".")[0])
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        return (
            "the memory is full; a smaller --batch-size, --dtype bfloat16 or a smaller model "
            "needs less"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"unexpected {type(error).__name__}: {text} (run again with --debug for the traceback)"
