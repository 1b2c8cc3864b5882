"""Data sets looked over: each finding has its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.tiny import tiny_processor

from paliglass.data.checks import check, contact_sheet
from paliglass.data.examples import Example, open_examples

PROCESSOR = tiny_processor()
BOX = "<loc0000><loc0000><loc0512><loc0512>"


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., Example]:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")

    def make(prefix: str, suffix: str, image: str = "a.png") -> Example:
        return Example(tmp_path / image, prefix, suffix, "data.jsonl, line 1")

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
        ("caption en", " ", "a.png", "the suffix is empty"),
        ("caption en", "a dog", "none.png", "none.png"),
        ("detect dog", f"{BOX} dog ; <loc9999> dog", "a.png", "1 of 2 boxes cannot be read"),
        ("detect dog", f"{BOX} cat", "a.png", "cat: in the suffix, but not asked for"),
        ("segment dog", f"{BOX} dog", "a.png", "without 16 <seg> tokens"),
        ("detect dog <loc0000>", "", "a.png", "the prefix holds location"),
        ("caption en", "x" * 300, "a.png", "tokens with its picture; the model has 200"),
    ],
)
def test_what_is_wrong_is_found(
    example: Callable[..., Example], prefix: str, suffix: str, image: str, problem: str
) -> None:
    wrong = example(prefix, suffix, image)
    ((where, said),) = check([wrong], PROCESSOR, 200).findings
    assert where == "data.jsonl, line 1"
    assert problem in said
    contact_sheet([wrong])


def test_boxes_outside_are_found(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 7, "file_name": "a.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [150, 0, 100, 50]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    ((_, said),) = check(open_examples(tmp_path / "coco.json"), PROCESSOR, 200).findings
    assert "annotations[0]: bbox [150, 0, 100, 50] leaves the picture of (200, 100)" in said
