"""Data sets looked over: each finding has its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.data.files import look, write
from tests.tiny import tiny_processor

from paliglass.data.checks import check, contact_sheet
from paliglass.data.example import Example, Findings
from paliglass.errors import PaliglassError

PROCESSOR = tiny_processor()
BOX = "<loc0000><loc0000><loc0512><loc0512>"


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., Example]:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")

    def make(prefix: str, suffix: str, image: str = "a.png") -> Example:
        return Example((tmp_path / image,), prefix, suffix, "data.jsonl, line 1")

    return make


def test_good_examples_have_no_findings(example: Callable[..., Example]) -> None:
    examples = [
        example("caption en", "a dog"),
        example("detect dog ; cat", f"{BOX} dog ; {BOX} cat"),
        example("detect dog", ""),
        example("segment dog", BOX + "<seg000>" * 16 + " dog"),
        example("ocr", ""),
    ]
    report = check(examples, PROCESSOR, 200)
    assert report.findings == []
    assert (report.examples, report.pictures) == (5, 1)
    assert report.tasks == {"caption": 1, "detect": 2, "segment": 1, "ocr": 1}
    assert report.to_dict()["suffix_tokens"]["least"] == 1  # <eos>
    assert contact_sheet(examples).size == (960, 612)


@pytest.mark.parametrize(
    ("prefix", "suffix", "image", "problem"),
    [
        ("caption en", "a dog", "none.png", "none.png"),
        ("detect dog", f"{BOX} cat", "a.png", "cat: in the suffix, but not asked for"),
        ("detect dog <loc0000>", "", "a.png", "the prefix holds location"),
        ("caption en", "x" * 300, "a.png", "tokens with its picture; the model has 200"),
    ],
)
def test_what_is_wrong_is_found(
    example: Callable[..., Example], prefix: str, suffix: str, image: str, problem: str
) -> None:
    wrong = example(prefix, suffix, image)
    (found,) = check([wrong], PROCESSOR, 200).findings
    assert found.where == "data.jsonl, line 1"
    assert problem in found.problem
    contact_sheet([wrong])


def test_labels_meet_whatever_their_capitals(example: Callable[..., Example]) -> None:
    assert not check([example("detect Hot  Dog", f"{BOX} hot dog")], PROCESSOR, 200).findings


def test_every_picture_of_a_prompt_is_opened_and_counted(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    paths = tuple(tmp_path / name for name in ("a.png", "b.png", "c.png"))
    report = check([Example(paths, "caption en", "a dog", "line 1")], PROCESSOR, 40)
    assert report.pictures == 3
    problems = [found.problem for found in report.findings]
    assert sum("no such file" in problem for problem in problems) == 2
    assert "the model has 40" in problems[-1]  # 3 × 16 tokens of pictures


def test_what_was_found_in_reading_stands_first(example: Callable[..., Example]) -> None:
    found = Findings()
    found.left_out("line 9", "has no area")
    report = check([example("caption en", "a dog", "none.png")], PROCESSOR, 200, found)
    assert [finding.where for finding in report.findings] == ["line 9", "data.jsonl, line 1"]
    assert report.to_dict()["left_out"] == 2
    assert report.to_dict()["findings"][0] == {
        "where": "line 9",
        "problem": "has no area",
        "severity": "left out",
    }


@pytest.mark.parametrize("name", ["nut; bolt", "...;", " "])
def test_where_no_class_is_left_the_error_names_the_one_that_was_refused(
    tmp_path: Path, name: str
) -> None:
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": name}]}
    write(tmp_path / "coco.json", coco)
    write(tmp_path / "data.yaml", f'names: ["{name}"]\ntrain: train\n')
    (tmp_path / "train").mkdir()
    for path in ("coco.json", "data.yaml"):
        with pytest.raises(PaliglassError, match=f"asked for; .*{path}.*{name!r} is no label"):
            look(tmp_path / path)
