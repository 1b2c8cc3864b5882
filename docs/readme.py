"""For cog: tables of the README and of commands.md, made from the command line and the imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cog
import typer

from paliglass.cli import app
from paliglass.cli.help import GENERAL, PANELS, Entry, entries, paragraphs, summary, usage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def _rows(command: Any, name: str) -> list[tuple[str, str]]:
    found = getattr(command, "commands", None)
    if found is None:
        return [(name, summary(command))]
    return [row for key, child in found.items() for row in _rows(child, f"{name} {key}")]


def commands() -> None:
    """Every command with the first sentence of its help."""
    cog.outl("| command | does |\n|---|---|")
    for name, what in _rows(typer.main.get_command(app), "paliglass"):
        cog.outl(f"| `{name}` | {what} |")


def _commands(command: Any, name: str) -> dict[str, Any]:
    """Every command by its whole name, in the order of help."""
    children = getattr(command, "commands", None)
    if children is None:
        return {name: command}
    order = [n for names in PANELS.values() for n in names.split() if n in children]
    names = [*order, *(n for n in children if n not in order)]
    return {k: v for n in names for k, v in _commands(children[n], f"{name} {n}").items()}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def _row(entry: Entry) -> str:
    flag = entry.usage.replace("|", "\\|")
    return f"| `{flag}` | {_cell(entry.words)} |"


def shared_options() -> None:
    """The options that several commands have, a row for each meaning of a flag."""
    places: dict[tuple[str, str], list[str]] = {}
    found = _commands(typer.main.get_command(app), "paliglass")
    for name, command in found.items():
        for entry in entries(command):
            if entry.flags and entry.flags[-1] != "--help":
                key = entry.usage, entry.help
                places.setdefault(key, []).append(name.removeprefix("paliglass "))
    cog.outl("| option | meaning | commands |\n|---|---|---|")
    for (flag, meaning), names in places.items():
        if len(names) > 2:
            where = "all" if len(names) == len(found) else ", ".join(names)
            cog.outl(f"| `{flag}` | {_cell(meaning)} | {where} |")


def options() -> None:
    """Every command: how it is called, and what it takes; `--quiet` and the like left out."""
    for name, command in _commands(typer.main.get_command(app), "paliglass").items():
        cog.outl(f"## {name}\n")
        for paragraph in paragraphs(command.help or ""):
            cog.outl(f"{_cell(paragraph)}\n")
        cog.outl(f"```\n{usage(command, name)}\n```\n")
        panels: dict[str, list[Entry]] = {}
        for entry in entries(command):
            if entry.panel != GENERAL:
                panels.setdefault(entry.panel, []).append(entry)
        for panel, found in panels.items():
            cog.outl(f"| {panel.lower()} | |\n|---|---|")
            for entry in found:
                cog.outl(_row(entry))
            cog.outl("")


def tree() -> None:
    """The package from the ground up, as the test of imports has it."""
    from tests.unit.test_imports import ORDER

    names = {n: f"{n}.py" if (ROOT / f"src/paliglass/{n}.py").exists() else f"{n}/" for n in ORDER}
    width = max(map(len, names.values()))
    cog.outl("```\nsrc/paliglass/")
    for name, what in ORDER.items():
        cog.outl(f"  {names[name]:{width}}  {what}")
    cog.outl("```")
