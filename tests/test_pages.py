"""The commands and code of the README and the docs run as they stand, and print what is shown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
NUMBER = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")


def title(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


def console_examples() -> list[tuple[Path, str, str]]:
    """(page, command, output) for every line behind a `$ ` in a console block."""
    examples = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for part in block.split("$ ")[1:]:
                command, _, output = part.partition("\n")
                examples.append((page, command, output))
    return examples


def code_examples() -> list[tuple[Path, str]]:
    """(page, all its Python blocks, one after the other)."""
    blocks = [
        (p, re.findall(r"```python\n(.*?)```", p.read_text("utf-8"), re.DOTALL)) for p in PAGES
    ]
    return [(page, "\n".join(found)) for page, found in blocks if found]


@pytest.fixture
def copy_of_assets(tmp_path: Path) -> Path:
    """A folder to run commands in, that they may write into."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    return tmp_path


@pytest.mark.parametrize(("page", "command", "expected"), console_examples(), ids=title)
def test_command_prints_what_the_page_shows(
    copy_of_assets: Path, page: Path, command: str, expected: str
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "paliglass"
    run = subprocess.run(
        [sys.executable, "-m", "paliglass", *arguments],
        cwd=copy_of_assets,
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


@pytest.mark.parametrize(("page", "code"), code_examples(), ids=title)
def test_python_example_runs(
    page: Path,
    code: str,
    copy_of_assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(copy_of_assets)
    exec(compile(code, page.name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_fine_tuning_goes_as_the_page_says(copy_of_assets: Path) -> None:
    line = json.dumps({"image": "assets/scene.png", "prefix": "caption en", "suffix": "a farm"})
    for name, lines in (("train.jsonl", 8), ("test.jsonl", 1)):
        (copy_of_assets / name).write_text(f"{line}\n" * lines, encoding="utf-8")
    page = (ROOT / "docs/finetuning.md").read_text("utf-8")
    found = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    for command in found[1].splitlines():
        arguments = shlex.split(command, comments=True)[1:]
        run = subprocess.run(
            [sys.executable, "-m", "paliglass", *arguments],
            cwd=copy_of_assets,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, command + run.stderr
    assert (copy_of_assets / "worst.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_linked_file_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    text = README.read_text("utf-8")
    assert [p.name for p in PAGES[1:] if f"(docs/{p.name})" not in text] == []


def test_every_file_of_the_annotated_tree_exists() -> None:
    tree = re.search(r"```\nsrc/paliglass/\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert tree is not None
    names = re.findall(r"^  ((?:[\w./]+  )*[\w./]+)", tree[1], re.MULTILINE)
    files = [name for line in names for name in line.split() if "." in name or "/" in name]
    assert len(files) > 12
    assert [f for f in files if not (ROOT / "src/paliglass" / f).exists()] == []
