"""Help, and that commands agree: one flag has one meaning, and the docs have them all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import typer

import paliglass
from paliglass.cli import app
from paliglass.cli.help import Entry, entries, page

ROOT = Path(__file__).parents[2]


def commands(command, name):
    children = getattr(command, "commands", {})
    yield name, command
    for child in children:
        yield from commands(children[child], f"{name} {child}")


ALL = dict(commands(typer.main.get_command(app), "paliglass"))
LEAVES = {name: some for name, some in ALL.items() if not hasattr(some, "commands")}


def options() -> dict[str, list[tuple[str, Entry]]]:
    """Each flag, short or long, with the commands that have it."""
    found = defaultdict(list)
    for name, command in LEAVES.items():
        for entry in entries(command):
            for flag in entry.flags:
                found[flag].append((name, entry))
    return found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [50, 78, 118])
def test_a_page_fits_its_width_and_leaves_nothing_out(name, width):
    text = page(ALL[name], name, width)
    lines = text.splitlines()
    # A usage line and a link are not cut in two.
    assert [line for line in lines[1:] if len(line) > width and " " in line.strip()] == []
    for entry in entries(ALL[name]):
        assert entry.usage in text
    for child in getattr(ALL[name], "commands", {}):
        assert f"\n  {child} " in text


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_the_same_manners(cli, name):
    shown = cli(*name.split()[1:], "--help")
    assert shown.code == 0
    for flag in ("-q, --quiet", "-v, --verbose", "--debug", "-h, --help"):
        assert flag in shown.out
    assert "<bool>" not in shown.out
    assert all(entry.help for entry in entries(LEAVES[name])), "an option without a word"


def test_a_short_flag_means_one_long_flag_everywhere():
    for flag, places in options().items():
        if len(flag) == 2:
            assert len({entry.flags[-1] for _, entry in places}) == 1, flag


def test_a_long_flag_takes_the_same_kind_of_value_everywhere():
    """A folder or a file for --out, as the command makes several or one; PATH is either."""
    for flag, places in options().items():
        # TEXT is what a value is called that nobody has named; recipes have words of their own.
        values = {e.value for name, e in places if "train" not in name} - {"PATH", "TEXT"}
        if flag not in ("--out", "-o"):
            assert len(values) <= 1, (flag, places)


def test_help_has_groups_and_every_command_is_in_one(cli):
    text = cli("--help").out
    assert "Ask about pictures\n  caption" in text
    assert "\nCommands\n" not in text  # where those go that no group has


@pytest.mark.parametrize("page", ["README.md", "docs/commands.md"])
def test_tables_made_from_the_commands_are_current(page):
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "-I", "docs", page],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(paliglass.__file__).parents[1])},
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake docs"


def test_the_shell_completes_commands_and_options():
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(paliglass.__file__).parents[1]),
        "_PALIGLASS_COMPLETE": "complete_bash",
    }
    for words, expected in (("paliglass cap", "caption"), ("paliglass caption --sty", "--style")):
        done = subprocess.run(
            [sys.executable, "-m", "paliglass"],
            env={**environment, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [expected], done.stderr
