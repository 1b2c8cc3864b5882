"""data check: a summary, findings, a sheet, an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from tests.cli.helpers import Result, picture

Cli = Callable[..., Result]


def test_a_set_is_summed_up_and_drawn(cli: Cli) -> None:
    picture("set/a.png", "red")
    line = {"image": "a.png", "prefix": "detect dog", "suffix": "<loc0000>" * 2 + "<loc0100>" * 2}
    line["suffix"] += " dog"
    Path("set/data.jsonl").write_text(json.dumps(line) + "\n")
    result = cli("data", "check", "set", "--sheet", "sheet.png")
    assert result.code == 0, result.err
    assert result.out.startswith("1 examples of 1 pictures: detect 1\n")
    assert result.out.endswith("nothing wrong found\n")
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (960, 306)


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
