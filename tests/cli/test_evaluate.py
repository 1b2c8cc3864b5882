"""paliglass eval and bench, as they are typed."""

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
    wrong = cli("eval", "--split", "nonsense")
    assert (wrong.code, "nonsense is none of test, style" in wrong.err) == (2, True)
    both = cli("eval", "--split", "test", "--data", data)
    assert (both.code, "--data has none" in both.err) == (2, True)
    data.write_text('{"image": "a.png"}\n')
    broken = cli("eval", "--data", data)
    assert broken.code == 1
    assert "data.jsonl, line 1: lacks" in broken.err
    data.write_text('{"image": "gone.png", "prefix": "ocr", "suffix": "A"}\n')
    gone = cli("eval", "--data", data)
    assert gone.code == 1
    assert "gone.png" in gone.err


def test_the_world_is_scored(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    import functools

    from workshop import world

    art = request.getfixturevalue("art")
    monkeypatch.setattr(world, "World", functools.partial(world.World, art=art))
    result = cli(*"eval --split test --split blank --limit 2 --prompts 3 --json".split())
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert list(found) == ["test", "blank"]
    assert found["test"]["naming"]["n"] == 2


def test_bench_compares_what_is_asked_for(cli: Cli, model_folder: Path) -> None:
    arguments = ["bench", model_folder, "--rounds", "1", "--tokens", "3", "--threads", "1"]
    arguments += ["--engine", "paliglass", "--engine", "transformers"]
    result = cli(*arguments, "--json", "--chart", "chart.svg")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert list(found["engines"]) == ["paliglass", "transformers"]
    ratio = found["ratios"]["tokens/s, bf16 / transformers"]
    assert ratio.keys() == {"value", "target", "met"}
    assert found["ratios"]["cold caption of mini, beyond torch's import"]["value"] > 0
    assert found["machine"]["read_gb_per_s"] > 0
    assert "paliglass" in Path("chart.svg").read_text()
    wrong = cli("bench", "--engine", "nonsense")
    assert (wrong.code, "'nonsense' is none of paliglass int8" in wrong.err) == (2, True)
