"""data check: a summary, findings, a sheet, an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.helpers import Result, picture
from tests.unit.test_adapters import adapter, layers

Cli = Callable[..., Result]


def test_a_set_is_summed_up_and_drawn(cli: Cli) -> None:
    picture("set/a.png", "red")
    line = {"image": "a.png", "prefix": "detect dog", "suffix": "<loc0000>" * 2 + "<loc0100>" * 2}
    line["suffix"] += " dog"
    Path("set/data.jsonl").write_text(json.dumps(line) + "\n")
    result = cli("data", "check", "set", "--sheet", "sheet.png")
    assert result.code == 0, result.err
    assert result.out.startswith("1 example of 1 picture: detect 1\n")
    assert "fewer examples than a batch has by default: train with --batch-size 1" in result.err
    assert result.out.endswith("nothing wrong found\n")
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (960, 306)


@pytest.mark.parametrize("name", ["tuned", "runs/tuned two", "./tuned"])
def test_an_adapter_in_the_place_of_a_model_is_taken_for_its_base(
    cli: Cli, model_folder: Path, name: str
) -> None:
    picture("a.png")
    Path("data.jsonl").write_text('{"image": "a.png", "prefix": "ocr", "suffix": "A"}\n')
    Path(name).parent.mkdir(exist_ok=True)
    adapter(Path(name), layers("q_proj"), base_model_name_or_path=str(model_folder))
    check = "data", "check", "data.jsonl", "--json", "--model"
    found = cli(*check, name)
    assert (found.code, found.out) == (0, cli(*check, model_folder).out), found.err
    adapter(Path("lost"), layers("q_proj"), base_model_name_or_path="gone")
    assert "lost: is an adapter of gone; gone: no such folder" in cli(*check, "lost").err


def test_findings_name_file_and_line(cli: Cli) -> None:
    line = {"image": "none.png", "prefix": "caption en", "suffix": ""}
    Path("data.jsonl").write_text("\n" + json.dumps(line))
    result = cli("data", "check", "data.jsonl")
    assert result.code == 1
    assert "data.jsonl, line 2: none.png: " in result.out
    assert "data.jsonl, line 2: the suffix is empty" in result.out
    assert "2 findings" in result.out
    report = json.loads(cli("data", "check", "data.jsonl", "--json").out)
    assert [finding["where"] for finding in report["findings"]] == ["data.jsonl, line 2"] * 2
    Path("data.jsonl").write_text('{\n{"image": "a.png"}\n')
    broken = cli("data", "check", "data.jsonl")
    assert broken.code == 1
    assert "data.jsonl, line 1: is not JSON" in broken.out
    assert 'data.jsonl, line 2: lacks "prefix"' in broken.out
    assert broken.out.endswith("0 examples of 0 pictures\n2 findings\n")
    assert cli("data", "check", "nothing").code == 2


def test_what_is_wrong_in_every_line_is_not_printed_for_each(cli: Cli) -> None:
    picture("a.png")
    line = {"image": "a.png", "prefix": "<image>ocr", "suffix": "A"}
    Path("data.jsonl").write_text((json.dumps(line) + "\n") * 50)
    result = cli("data", "check", "data.jsonl")
    assert result.out.count("data.jsonl, line") == 20
    assert "30 more: the prefix has" in result.out
    assert "50 findings" in result.out
    assert len(json.loads(cli("data", "check", "data.jsonl", "--json").out)["findings"]) == 50


def test_one_wrong_line_does_not_end_the_check(cli: Cli) -> None:
    picture("a.png")
    good = {"image": "a.png", "prefix": "ocr", "suffix": "A"}
    rows = [
        {**good, "prefix": "detect ;"},
        good,
        {**good, "suffix": "half \ud800"},
        {**good, "prefix": "<image> ocr <image>"},
        {**good, "suffix": "x" * 20000},
    ]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("data", "check", "data.jsonl")
    assert result.code == 1
    assert "data.jsonl, line 1: the prefix 'detect ;' names nothing" in result.out
    assert "data.jsonl, line 3: the suffix holds half a character" in result.out
    assert "data.jsonl, line 4: the prefix holds <image>" in result.out
    assert "data.jsonl, line 5: takes" in result.out
    assert "2 examples of 1 picture" in result.out


def test_texts_from_files_do_not_steer_the_terminal(cli: Cli) -> None:
    line = {"image": "a\x1b[31m.png", "prefix": "\x1b[2Jocr", "suffix": "A"}
    Path("data.jsonl").write_text(json.dumps(line) + "\n")
    result = cli("data", "check", "data.jsonl")
    assert "\x1b" not in result.out
    assert "a\\x1b[31m.png" in result.out


def test_all_splits_of_a_folder_are_checked(cli: Cli) -> None:
    for split in ("train", "valid"):
        picture(f"set/{split}/a.png")
        line = {"image": "a.png", "prefix": "ocr", "suffix": "A"}
        Path(f"set/{split}/annotations.jsonl").write_text(json.dumps(line) + "\n")
    result = cli("data", "check", "set")
    assert result.out.startswith("2 examples of 2 pictures: ocr 2\n")
