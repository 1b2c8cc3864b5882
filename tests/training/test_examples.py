"""What fine-tuning reads: every format, and what wrong entries get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paliglass import load
from paliglass.data.examples import open_examples
from paliglass.errors import PaliglassError
from paliglass.formats.rle import encode_rle


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl(tmp_path: Path) -> None:
    lines = [
        {"image": "a.png", "prefix": "caption en", "suffix": "a dog"},
        {"image": "sub/b.png", "prefix": "answer en what?", "suffix": ["yes", "yeah"]},
    ]
    path = write(tmp_path / "data.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n")
    first, second = open_examples(path)
    assert (first.image, first.prefix, first.suffix) == (tmp_path / "a.png", "caption en", "a dog")
    assert first.where == f"{path}, line 1"
    assert (second.suffix, second.answers) == ("yes", ("yes", "yeah"))
    assert second.where == f"{path}, line 3"
    assert open_examples(tmp_path) == [first, second]  # a folder with a data.jsonl


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no examples"),
        ("\n{}", 'line 2: lacks "image"'),
        ('{"image": 1, "prefix": "a", "suffix": "b"}', 'line 1: "image" is 1'),
        ('{"image": "a.png", "prefix": "a", "suffix": []}', 'line 1: "suffix" is []'),
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: is no JSON object"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "data.jsonl", text)
    with pytest.raises(PaliglassError) as error:
        open_examples(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "red ball"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "bbox": [100, 0, 100, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [100, 50, 50, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        **changes,
    }


def test_coco_boxes_become_detect(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", coco())
    (example,) = open_examples(path, images=tmp_path / "pictures")
    assert example.image == tmp_path / "pictures" / "a.png"
    assert example.prefix == "detect dog ; red ball"
    assert example.suffix == (
        "<loc0000><loc0000><loc1023><loc0512> dog ; "
        "<loc0512><loc0512><loc1023><loc0767> dog ; "
        "<loc0000><loc0512><loc0512><loc1023> red ball"
    )


def test_coco_masks_become_segment(tmp_path: Path) -> None:
    mini = load("mini")
    mask = np.zeros((100, 200), np.bool_)
    mask[20:80, 10:90] = True
    outlines = [[10, 20, 90, 20, 90, 80, 10, 80]]
    suffixes = []
    for segmentation in (outlines, encode_rle(mask)):
        thing = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 80, 60]}
        thing["segmentation"] = segmentation
        path = write(tmp_path / "instances.json", coco(annotations=[thing]))
        (example,) = open_examples(path, task="segment", codec=mini.mask_codec)
        assert example.prefix == "segment dog ; red ball"
        suffixes.append(example.suffix)
    assert suffixes[0].startswith("<loc0205><loc0051><loc0818><loc0460><seg")
    assert suffixes[0].count("<seg") == 16
    assert suffixes[0] == suffixes[1]
    with pytest.raises(PaliglassError, match="a model with a mask codec"):
        open_examples(path, task="segment")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"annotations": [{"image_id": 7}]}, "annotations[0]: lacks category_id, bbox"),
        ({"images": 3}, "images is no list"),
        (
            {"annotations": [{"image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 1]}]},
            "annotations[0]: category_id 9 is no category",
        ),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": "x"}]},
            "annotations[0]: bbox is 'x'",
        ),
    ],
)
def test_wrong_coco_is_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    path = write(tmp_path / "instances.json", coco(**changes))
    with pytest.raises(PaliglassError) as error:
        open_examples(path)
    assert complaint in str(error.value)


def test_boxes_without_area_are_left_out_and_noted(tmp_path: Path) -> None:
    flat = {"image_id": 7, "category_id": 1, "bbox": [10, 10, 5, 0]}
    whole = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 100]}
    path = write(tmp_path / "instances.json", coco(annotations=[flat, whole]))
    (example,) = open_examples(path)
    assert example.suffix == "<loc0000><loc0000><loc1023><loc0512> dog"
    (note,) = example.notes
    assert note.endswith("annotations[0]: bbox [10, 10, 5, 0] has no area, and is left out")


def test_every_wrong_line_can_be_told(tmp_path: Path) -> None:
    good = json.dumps({"image": "a.png", "prefix": "ocr", "suffix": "A"})
    path = write(tmp_path / "data.jsonl", f'{{\n{good}\n{{"image": 1}}\n')
    problems: list[tuple[str, str]] = []
    (example,) = open_examples(path, problems=problems)
    assert example.where == f"{path}, line 2"
    assert [where for where, _ in problems] == [f"{path}, line 1", f"{path}, line 3"]
    assert problems[1][1].startswith('lacks "prefix"')
    write(tmp_path / "set" / "metadata.csv", "file_name,text\n,a dog\nb.png,a cat\n")
    problems.clear()
    assert len(open_examples(tmp_path / "set", problems=problems)) == 1
    assert problems == [(f"{tmp_path / 'set' / 'metadata.csv'}, line 2", "lacks file_name")]


def test_every_wrong_coco_entry_is_told(tmp_path: Path) -> None:
    good = {"image_id": 7, "category_id": 1, "bbox": [1, 1, 2, 2]}
    wrong = [{**good, "category_id": 99}, {"image_id": 7}, {**good, "bbox": "wide"}]
    data = coco(annotations=[*wrong, good])
    data["images"].append({"id": 2})
    problems: list[tuple[str, str]] = []
    found = open_examples(write(tmp_path / "instances.json", data), problems=problems)
    assert [where.rpartition(", ")[2] for where, _ in problems] == [
        "images[1]",
        "annotations[0]",
        "annotations[1]",
        "annotations[2]",
    ]
    assert [example.suffix.count("<loc") for example in found] == [4]


def test_coco_captions(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.png"}]
    captions = [{"image_id": 7, "caption": "A dog.\n"}, {"image_id": 7, "caption": "One  dog."}]
    path = write(tmp_path / "captions.json", {"images": images, "annotations": captions})
    examples = open_examples(path)
    assert [e.suffix for e in examples] == ["A dog.", "One dog."]
    assert {e.prefix for e in examples} == {"caption en"}


def test_vqa(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "COCO_val2014_000000000042.jpg")
    question = {"question_id": 1, "image_id": 42, "question": "what is it?"}
    given = [{"answer": "dog"}, {"answer": "dog"}, {"answer": "wolf"}]
    answer = {"question_id": 1, "answers": given, "multiple_choice_answer": "dog"}
    path = write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [question]})
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [answer]})
    (example,) = open_examples(path)
    assert example.image.name == "COCO_val2014_000000000042.jpg"
    assert (example.prefix, example.suffix) == ("answer en what is it?", "dog")
    assert example.answers == ("dog", "dog", "wolf")
    write(
        tmp_path / "v2_mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": 1, "answers": []}]},
    )
    with pytest.raises(PaliglassError, match=r"annotations\[0\]: answers are to be"):
        open_examples(path)
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(PaliglassError, match=r"questions\[0\]: .* has no answer to it"):
        open_examples(path)


def test_folders(tmp_path: Path) -> None:
    for name in ("hot_dog", "cat"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "classes" / name / "1.png")
    examples = open_examples(tmp_path / "classes")
    assert [(e.prefix, e.suffix) for e in examples] == [
        ("answer en what is this?", "cat"),
        ("answer en what is this?", "hot dog"),
    ]
    write(tmp_path / "table" / "metadata.csv", 'file_name,text\na.png,"a dog, here"\n')
    (example,) = open_examples(tmp_path / "table")
    assert (example.prefix, example.suffix) == ("caption en", "a dog, here")
    assert example.where.endswith("metadata.csv, line 2")
    line = {"file_name": "a.png", "prefix": "ocr", "suffix": "STOP"}
    write(tmp_path / "lines" / "metadata.jsonl", line)
    (example,) = open_examples(tmp_path / "lines")
    assert (example.prefix, example.suffix) == ("ocr", "STOP")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PaliglassError, match="no folders of pictures"):
        open_examples(tmp_path / "empty")
    with pytest.raises(PaliglassError, match="no such file"):
        open_examples(tmp_path / "nothing")
