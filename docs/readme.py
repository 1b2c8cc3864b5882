"""For cog: the README's tables, made from the command line and from the order of imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cog
import typer

from paliglass.cli import app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def _rows(command: Any, name: str) -> list[tuple[str, str]]:
    found = getattr(command, "commands", None)
    if found is None:
        return [(name, command.get_short_help_str(200))]
    return [row for key, child in found.items() for row in _rows(child, f"{name} {key}")]


def commands() -> None:
    """Every command with the first sentence of its help."""
    cog.outl("| command | does |\n|---|---|")
    for name, what in _rows(typer.main.get_command(app), "paliglass"):
        cog.outl(f"| `{name}` | {what} |")


def tree() -> None:
    """The package from the ground up, as the test of imports has it."""
    from tests.unit.test_imports import ORDER

    names = {n: f"{n}.py" if (ROOT / f"src/paliglass/{n}.py").exists() else f"{n}/" for n in ORDER}
    width = max(map(len, names.values()))
    cog.outl("```\nsrc/paliglass/")
    for name, what in ORDER.items():
        cog.outl(f"  {names[name]:{width}}  {what}")
    cog.outl("```")
