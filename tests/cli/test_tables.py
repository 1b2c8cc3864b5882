"""What a program reads has no frame, no escape and no line cut; a person sees a frame."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result, picture

import paliglass
from paliglass.cli.tables import print_table

Cli = Callable[..., Result]
DRAWN = re.compile("[\u2500-\u257f\x1b]")  # lines of boxes, and terminal codes
SOURCES = Path(paliglass.__file__).parent


@pytest.mark.parametrize(
    "words",
    [
        ("similarity", "a.png", "--model", "mini-dual", "--text", "a dog", "--text", "one cat"),
        ("info", "mini"),
        ("info", "paligemma2-28b-896", "--training"),
        ("learn",),
        ("learn", "rope", "--no-run", "--answers"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_is_piped_is_not_drawn(cli: Cli, words: tuple[str, ...]) -> None:
    picture("a.png")
    result = cli(*words)
    assert result.code == 0, result.err
    assert result.out.strip()
    assert not DRAWN.search(result.out)


def test_a_piped_matrix_is_columns(cli: Cli) -> None:
    long = "a name that is longer than any terminal is wide " * 4
    for name in ("a.png", f"{long}.png", "b [red].png"):
        picture(name)
    result = cli(
        *("similarity", "a.png", f"{long}.png", "b [red].png"),
        *("--text", "a dog", "--text", f"{long}.", "--text", "a\ttab", "--model", "mini-dual"),
    )
    head, *rows = (line.split("\t") for line in result.out.splitlines())
    assert head == ["", "a dog", f"{long}.", "a\\ttab"]
    assert [row[0] for row in rows] == ["a.png", f"{long}.png", "b [red].png"]
    assert [len([float(cell) for cell in row[1:]]) for row in rows] == [3, 3, 3]


def test_at_a_terminal_it_is_framed_and_names_are_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["", "[b]score"], [("[/b]a", "0.5")], title="[red]x\x1b[2J")
    out = capsys.readouterr().out
    assert "┃" in out
    print_table([], [])  # of nothing, nothing
    assert all(text in out for text in ("[b]score", "[/b]a", "[red]x\\x1b[2J"))


def test_no_other_module_draws_a_table_that_might_be_piped() -> None:
    """`printing` has one for detections, and `screen` shows it, at a terminal alone."""
    drawing = {
        path.name
        for path in SOURCES.rglob("*.py")
        if re.search(r"^\s*(from|import) rich\b.*\btable\b", path.read_text("utf-8"), re.M)
    }
    assert drawing == {"tables.py", "printing.py", "screen.py"}
