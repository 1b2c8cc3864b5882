"""paliglass eval, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result, picture
from tests.unit.test_adapters import adapter, layers

from paliglass.errors import printable

Cli = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    picture("a.png")
    rows = [
        {"image": "a.png", "prefix": "caption en", "suffix": ["a dog", "one dog"]},
        {"image": "a.png", "prefix": "detect dog", "suffix": ""},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ones_own_data_is_scored(cli: Cli, data: Path) -> None:
    result = cli(
        "eval", "--data", data.name, "--json", "--max-new-tokens", "6", "--html", "page.html"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)["data.jsonl"]
    assert found["caption: CIDEr"].keys() == {"score", "baseline", "floor", "target", "n"}
    assert found["caption: exact"]["n"] == 1
    assert Path("page.html").read_text().startswith("<!doctype html>")
    table = cli("eval", "--data", data.name, "--limit", "1", "--max-new-tokens", "6")
    assert "caption: exact" in table.out
    assert "detect" not in table.out


@pytest.mark.parametrize("where", ["tuned", "runs/tuned two"])
def test_the_page_names_an_adapter_and_its_base(
    cli: Cli, data: Path, model_folder: Path, where: str
) -> None:
    Path(where).parent.mkdir(exist_ok=True)
    adapter(Path(where), layers("q_proj"), base_model_name_or_path=str(model_folder))
    run = ("eval", "--data", data.name, "--limit", "1", "--max-new-tokens", "6", "--html", "p.html")
    assert cli(*run, "--adapter", where).code == 0
    assert f"How right is {where} on {model_folder}?" in Path("p.html").read_text()
    assert cli(*run, "--overwrite", "--model", where).code == 0
    assert f"How right is {where}?" in Path("p.html").read_text()


def test_wrong_files_are_named(cli: Cli, data: Path) -> None:
    data.write_text('{"image": "a.png"}\n')
    broken = cli("eval", "--data", data.name)
    assert broken.code == 1
    assert "data.jsonl, line 1: lacks" in broken.err
    data.write_text('{"image": "gone.png", "prefix": "ocr", "suffix": "A"}\n')
    gone = cli("eval", "--data", data.name)
    assert gone.code == 1
    assert "data.jsonl, line 1: gone.png: no such file" in gone.err
    hint = "; --images names the folder that its pictures are in"
    assert f"not one of the prompts could be answered{hint}\n" in gone.err
    Path("gone.png").write_bytes(b"no picture")
    broken = cli("eval", "--data", data.name)
    assert "not one of the prompts could be answered\n" in broken.err


def test_one_missing_picture_does_not_end_it(cli: Cli, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"image": "gone.png", "prefix": "ocr", "suffix": "A"}\n')
        file.write('{"image": ["a.png", "gone.png"], "prefix": "ocr", "suffix": "A"}\n')
    result = cli("eval", "--data", data.name, "--json", "--max-new-tokens", "6")
    assert result.code == 1
    assert json.loads(result.out)["data.jsonl"]["caption: exact"]["n"] == 1
    assert "data.jsonl, line 3: gone.png" in result.err
    assert "2 of 4 prompts could not be answered" in result.err


def test_what_is_cut_or_left_out_is_told(cli: Cli, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"image": "a.png", "prefix": "ocr", "suffix": null}\n')
        file.write('{"image": "a.png", "prefix": "ocr", "suffix": "A long text in letters"}\n')
    result = cli("eval", "--data", data.name, "--max-new-tokens", "6")
    assert result.code == 0, result.err
    assert "1 left out, the first: data.jsonl, line 3: suffix is null" in result.err
    assert "--max-new-tokens 6 cuts it" in result.err


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("[bold]x.jsonl", "[/b]\x1b[31m"),
        ("[bold.jsonl", "[/]"),
        ("[link=x]a.jsonl", "[on\x1b]0;t\x07"),
        ("a\x1b[2J.jsonl", "\u202eocr"),
    ],
)
def test_names_from_files_are_no_markup(
    cli: Cli, data: Path, name: str, word: str, terminal: bool
) -> None:
    row = {"image": "a.png", "prefix": f"{word} [red]what", "suffix": "A"}
    data.with_name(name).write_text(json.dumps(row) + "\n")
    result = cli("eval", "--data", name, "--max-new-tokens", "2", terminal=terminal)
    assert result.code == 0, result.err
    for text in (f"{printable(word)}: exact", printable(name)):
        assert text in result.out
    for code in ("\x1b[31m", "\x1b[2J", "\x07", "\u202e"):
        assert code not in result.out + result.err
