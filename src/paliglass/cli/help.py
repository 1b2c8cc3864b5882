"""Help: what a command takes, as text of any width; the table in the docs has it from here too.

Typer's own help has a column for types, which leaves twenty letters for words at 80 columns.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

__all__ = [
    "GENERAL",
    "PANELS",
    "Command",
    "Entry",
    "Group",
    "called",
    "entries",
    "page",
    "paragraphs",
    "summary",
    "usage",
]

COLUMN = 24  # letters for flags; longer ones have a line of their own
COMMANDS = "Commands"
PANELS = {
    "Ask about pictures": "caption ask read detect segment generate annotate",
    "Compare pictures and texts": "embed search classify similarity",
    "Look inside": "trace lab learn",
    "Models": "info convert export verify bench serve compare-server",
    "Your data": "data train eval",
}
"""The application's commands, in the order in which help lists them."""
ARGUMENTS = "Arguments"
OPTIONS = "Options"
GENERAL = "General"


@dataclass(frozen=True)
class Entry:
    """An argument or an option: `-o, --out FOLDER`, and what is said of it.

    flags: the long one last; none for an argument. facts: choices, range, default and the like.
    """

    panel: str
    flags: tuple[str, ...]
    value: str
    help: str
    facts: str

    @property
    def usage(self) -> str:
        return " ".join(filter(None, [", ".join(self.flags), self.value]))

    @property
    def words(self) -> str:
        return self.help + (f" [{self.facts}]" if self.facts else "")


def entries(command: TyperCommand | TyperGroup) -> list[Entry]:
    """What a command takes, panel by panel, in the order of its parameters."""
    names = ["-h", "--help"]
    context = command.make_context(
        command.name or "", [], resilient_parsing=True, help_option_names=names
    )
    found = [_entry(p) for p in command.get_params(context) if not getattr(p, "hidden", False)]
    panels = list(dict.fromkeys(entry.panel for entry in found if entry.panel != GENERAL))
    return [entry for panel in [*panels, GENERAL] for entry in found if entry.panel == panel]


def _entry(parameter: Any) -> Entry:
    is_argument = parameter.param_type_name == "argument"
    panel = getattr(parameter, "rich_help_panel", None) or (ARGUMENTS if is_argument else OPTIONS)
    if parameter.name in ("help", "install_completion", "show_completion"):
        panel = GENERAL
    flags = sorted(parameter.opts, key=len) + list(parameter.secondary_opts)
    return Entry(
        panel,
        () if is_argument else tuple(flags),
        "" if getattr(parameter, "is_flag", False) else _value(parameter),
        (parameter.help or "").strip(),
        "; ".join(_facts(parameter, is_argument)),
    )


def _value(parameter: Any) -> str:
    """FOLDER, N, TEXT: what stands behind the flag."""
    kind = parameter.type_descriptor
    name: str
    if parameter.metavar:
        name = parameter.metavar
    elif parameter.param_type_name == "argument":
        name = parameter.name.upper()
    elif kind.is_choice:
        name = "CHOICE"
    elif kind.is_path:
        name = {"file": "FILE", "dir": "FOLDER"}.get(kind.path_type, "PATH")
    elif kind.is_ranged or kind.annotation in (int, float):
        name = "N" if "int" in str(kind.annotation) else "X"
    else:
        name = "TEXT"
    return name + ("..." if parameter.param_type_name == "argument" and kind.is_list else "")


def _facts(parameter: Any, is_argument: bool) -> Iterable[str]:
    kind = parameter.type_descriptor
    default = parameter.default
    shown = parameter.show_default
    if kind.is_choice:
        yield " | ".join(map(str, kind.choices))
    if getattr(parameter, "multiple", False):
        yield "repeatable"
    if isinstance(shown, str):
        yield f"default: {shown}"
    elif shown and default is not None and not callable(default) and default != []:
        if not isinstance(default, bool):
            yield f"default: {default}"
        elif parameter.secondary_opts:
            yield f"default: {(parameter.opts if default else parameter.secondary_opts)[0]}"
    if parameter.envvar:
        yield f"or {parameter.envvar}"
    if parameter.required and not is_argument:
        yield "required"


def page(command: TyperCommand | TyperGroup, path: str, width: int = 80) -> str:
    """A command's help. path: how it is called, as "paliglass train"."""
    width = max(width, COLUMN + 24)
    found = entries(command)
    lines = [f"Usage: {usage(command, path)}", ""]
    for paragraph in paragraphs(command.help or ""):
        lines += [*textwrap.wrap(paragraph, width, break_on_hyphens=False), ""]
    if isinstance(command, TyperGroup):
        for panel, commands in by_panel(command).items():
            rows = [(name, summary(some)) for name, some in commands.items()]
            lines += _section(panel, rows, width)
    for panel in dict.fromkeys(entry.panel for entry in found):
        rows = [(_aligned(entry), entry.words) for entry in found if entry.panel == panel]
        lines += _section(panel, rows, width)
    return "\n".join(lines).rstrip() + "\n"


def by_panel(group: TyperGroup) -> dict[str, dict[str, TyperCommand | TyperGroup]]:
    """The commands of a group, panel by panel."""
    left: dict[str, Any] = {n: some for n, some in group.commands.items() if not some.hidden}
    panels: dict[str, dict[str, Any]] = {}
    for panel, names in PANELS.items():
        panels[panel] = {name: left.pop(name) for name in names.split() if name in left}
    panels[COMMANDS] = left
    return {panel: commands for panel, commands in panels.items() if commands}


def usage(command: TyperCommand | TyperGroup, path: str) -> str:
    """`paliglass ask [OPTIONS] PICTURE|TEXT...`"""
    arguments = [e.value for e in entries(command) if not e.flags]
    more = ["COMMAND"] if isinstance(command, TyperGroup) else []
    return " ".join([path, "[OPTIONS]", *arguments, *more])


def summary(command: TyperCommand | TyperGroup) -> str:
    """The first paragraph of what a command says of itself, up to its example."""
    first = next(iter(paragraphs(command.help or "")), "")
    return first.partition(": paliglass ")[0].rstrip(".") + "."


def paragraphs(text: str) -> list[str]:
    """A docstring's, each in one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n") if part.strip()]


def _aligned(entry: Entry) -> str:
    """Long flags stand below each other, whether they have a short one or not."""
    return ("    " if entry.flags and len(entry.flags[0]) != 2 else "") + entry.usage


def _section(title: str, rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    column = min(COLUMN, max(len(left) for left, _ in rows)) + 2
    lines = [_bold(title)]
    for left, right in rows:
        wrapped = textwrap.wrap(right, width - column - 2, break_on_hyphens=False) or [""]
        if len(left) + 2 > column:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:{column}}{wrapped.pop(0)}".rstrip())
        lines += [" " * (column + 2) + line for line in wrapped]
    return [*lines, ""]


def _bold(text: str) -> str:
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    return f"\x1b[1m{text}\x1b[0m" if at_terminal and "NO_COLOR" not in os.environ else text


def called(parameter: Any) -> str:
    """An option's longest name; what the help calls an argument."""
    if parameter.param_type_name == "argument":
        return _value(parameter)
    return str(max(parameter.opts, key=len))


class Command(TyperCommand):
    """A command whose help is `page`, and that takes no empty path and no endless number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parameters: dict[Any, Any] = {some.name: some for some in self.get_params(ctx)}
        # Before `Path` makes the folder one is in of "", which "$NOT_SET" is in a script.
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for name, value in given.items():
            values = value if isinstance(value, list | tuple) else [value]
            if parameters[name].type_descriptor.is_path and "" in values:
                raise BadParameter(f"{called(parameters[name])} is empty; give a path", ctx)
        left = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadParameter(f"{called(parameters[name])} is {value}; it must be finite", ctx)
        return left

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx.command_path, formatter.width))


class Group(TyperGroup):
    """A group of commands whose help is `page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(page(self, ctx.command_path, formatter.width))
