"""paliglass eval, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.helpers import Result, picture

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
    result = cli("eval", "--data", data, "--json", "--max-new-tokens", "6", "--html", "page.html")
    assert result.code == 0, result.err
    found = json.loads(result.out)["data.jsonl"]
    assert found["caption: CIDEr"].keys() == {"score", "baseline", "floor", "target", "n"}
    assert found["caption: exact"]["n"] == 1
    assert Path("page.html").read_text().startswith("<!doctype html>")
    table = cli("eval", "--data", data, "--limit", "1", "--max-new-tokens", "6")
    assert "caption: exact" in table.out
    assert "detect" not in table.out


def test_wrong_flags_and_files_are_named(cli: Cli, data: Path) -> None:
    data.write_text('{"image": "a.png"}\n')
    broken = cli("eval", "--data", data)
    assert broken.code == 1
    assert "data.jsonl, line 1: lacks" in broken.err
    data.write_text('{"image": "gone.png", "prefix": "ocr", "suffix": "A"}\n')
    gone = cli("eval", "--data", data)
    assert gone.code == 1
    assert "gone.png" in gone.err
