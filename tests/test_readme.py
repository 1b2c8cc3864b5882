"""The README's commands and code run as they stand, and print what it says they print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")


def console_examples() -> list[tuple[str, str]]:
    """(command, output) for every line behind a `$ ` in a console block."""
    examples = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            examples.append((command, output))
    return examples


@pytest.mark.parametrize(("command", "expected"), console_examples())
def test_command_prints_what_the_readme_shows(command: str, expected: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "paliglass"
    run = subprocess.run(
        [sys.executable, "-m", "paliglass", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert NUMBER.sub("#", run.stdout) == NUMBER.sub("#", expected)
    # Scores differ in their last digits from processor to processor.
    shown = [float(number) for number in NUMBER.findall(expected)]
    assert [float(number) for number in NUMBER.findall(run.stdout)] == pytest.approx(
        shown, abs=0.02
    )


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_example_runs(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_of_the_annotated_tree_exists() -> None:
    tree = re.search(r"```\nsrc/paliglass/\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    names = re.findall(r"^  ((?:[\w./]+  )*[\w./]+)", tree[1], re.MULTILINE)
    files = [name for line in names for name in line.split() if "." in name or "/" in name]
    assert len(files) > 12
    assert [f for f in files if not (ROOT / "src/paliglass" / f).exists()] == []
