"""Folders: known exports, splits, metadata, classes; what is none of these is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.data.files import lines, look, paint, write

from paliglass.data.reading import open_examples
from paliglass.errors import PaliglassError

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 50]}],
}
ROW = {
    "image": "a.jpg",
    "prefix": "detect dog",
    "suffix": "<loc0000><loc0000><loc0512><loc0512> dog",
}


def test_classes(tmp_path: Path) -> None:
    for name in ("hot_dog", "cat", ".ipynb_checkpoints", "__MACOSX"):
        paint(tmp_path / name / "1.png", (4, 4))
    paint(tmp_path / "cat" / "._1.png", (4, 4))
    write(tmp_path / "notes" / "read.me", "no pictures here")
    assert [(e.prefix, e.suffix) for e in open_examples(tmp_path)] == [
        ("answer en what is this?", "cat"),
        ("answer en what is this?", "hot dog"),
    ]


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for name in ("A", "bus", "train", "traina"):  # a letter of its own is no split either
        paint(tmp_path / name / "1.png", (4, 4))
    assert [e.suffix for e in open_examples(tmp_path)] == ["A", "bus", "train", "traina"]


def coco(folder: Path) -> None:
    write(folder / "_annotations.coco.json", COCO)


def jsonl(folder: Path) -> None:
    lines(folder / "annotations.jsonl", ROW)


def metadata(folder: Path) -> None:
    lines(folder / "metadata.jsonl", {"file_name": "a.jpg", "text": "a dog"})


def classes(folder: Path) -> None:
    paint(folder / "dog" / "b.jpg", (4, 4))


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (coco, "detect dog"),
        (jsonl, "detect dog"),
        (metadata, "caption en"),
        (classes, "answer en what is this?"),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, make: Any, prefix: str) -> None:
    for split in ("train", "valid", "test"):
        if make is not classes:
            paint(tmp_path / split / "a.jpg")
        make(tmp_path / split)
    write(tmp_path / "README.dataset.txt", "exported")
    (example,) = open_examples(tmp_path)
    assert example.prefix == prefix
    assert "train" in example.images[0].parts
    (held_out,) = open_examples(tmp_path, split="held out")
    assert "valid" in held_out.images[0].parts
    assert len(open_examples(tmp_path, split="all")) == 3


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "test" / "a.jpg")
    coco(tmp_path / "test")
    with pytest.raises(PaliglassError, match=r"has no train split, but test; name the one"):
        open_examples(tmp_path)


def test_roboflows_lines_are_read(tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg")
    lines(tmp_path / "_annotations.train.jsonl", ROW)
    lines(tmp_path / "_annotations.valid.jsonl", ROW, {**ROW, "prefix": "detect cat", "suffix": ""})
    assert len(open_examples(tmp_path)) == 1
    assert len(open_examples(tmp_path, split="held out")) == 2


@pytest.mark.parametrize(
    "file",
    [
        *("_annotations.coco.json", "labels.json", "a.xml", "_annotations.csv", "_classes.csv"),
        *("_darknet.labels.json", "_annotations.createml.json", "data.tfrecord"),
        "a.txt",  # a caption, or YOLO's labels
    ],
)
def test_exports_that_are_not_known_are_refused(tmp_path: Path, file: str) -> None:
    """Parts of an export, each with its annotations: their names are no classes."""
    for name in ("part1", "part2"):
        paint(tmp_path / name / "a.jpg")
        write(tmp_path / name / file, "{}")
    with pytest.raises(PaliglassError, match=r"part1.*is no class"):
        open_examples(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train2017", "val2017"),
        ("JPEGImages", "SegmentationClass"),
        ("train_images", "test_images"),
        ("train",),
        ("train", "val"),
        ("images",),
        ("images", "labels"),
        ("drawings", "masks"),
        ("samples",),
        ("image", "mask"),
        ("image_2", "label_2"),
        ("input", "target"),
        ("im", "gt"),
        ("rgb", "depth"),
        ("frames",),
        ("trainA", "trainB"),
        ("trainA", "trainB", "testA", "testB"),
        ("train_a", "val_b"),
        ("images_trainA", "images_trainB"),
    ],
)
def test_folders_of_tools_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        paint(tmp_path / name / "a.png")
    with pytest.raises(PaliglassError, match=r"are no classes|has no examples"):
        open_examples(tmp_path)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PaliglassError, match="has no examples; give the annotation file itself"):
        open_examples(tmp_path)
    paint(tmp_path / "a.png")
    with pytest.raises(PaliglassError, match="has no examples"):
        open_examples(tmp_path)
    write(tmp_path / "instances_train2017.json", COCO)
    with pytest.raises(PaliglassError, match=r"holds instances_train2017\.json"):
        open_examples(tmp_path)
    with pytest.raises(PaliglassError, match="no such file"):
        open_examples(tmp_path / "nothing")


def test_metadata(tmp_path: Path) -> None:
    write(tmp_path / "table" / "metadata.csv", 'file_name,text\na.png,"a dog, here"\n')
    (example,) = open_examples(tmp_path / "table")
    assert (example.prefix, example.suffix) == ("caption en", "a dog, here")
    assert example.where.endswith("metadata.csv, line 2")
    row = {"file_name": "a.png", "prefix": "ocr", "suffix": "STOP"}
    lines(tmp_path / "lines" / "metadata.jsonl", row, {"file_name": "b.png", "label": "dog"})
    ocr, label = open_examples(tmp_path / "lines")
    assert (ocr.prefix, ocr.suffix) == ("ocr", "STOP")
    assert (label.prefix, label.suffix) == ("answer en what is this?", "dog")


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffile_name,text\na.png,Hund\n",
        "file_name;text\na.png;Hund\n",
        "\ufefffile_name\ttext\r\na.png\tHund\r\n",
        " text , file_name \nHund,a.png\n",
    ],
)
def test_tables_of_spreadsheets_are_read(tmp_path: Path, text: str) -> None:
    write(tmp_path / "metadata.csv", text)
    (example,) = open_examples(tmp_path)
    assert example.suffix == "Hund"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file_name,text\n,a dog\nb.png,a cat\n", "line 2: lacks file_name"),
        ("file_name,text\na.png\nb.png,a cat\n", "line 2: lacks text"),
        ("file_name,text\na.png,\nb.png,a cat\n", "line 2: the suffix is empty"),
        ("file_name,title\nb.png,a cat\n", "line 2: lacks text"),
    ],
)
def test_rows_that_say_too_little_are_left_out(tmp_path: Path, text: str, problem: str) -> None:
    write(tmp_path / "metadata.csv", text)
    _, (found,) = look(tmp_path)
    assert problem in f"{found.where}: {found.problem}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file_name,text\na.png,a dog, a cat\n", "line 2: has more cells"),
        ("file_name;text\na.png;a;b\n", "line 2: has more cells"),
        ("file_name,text,text\na.png,a,b\n", "two columns 'text'"),
        ('file_name,text\na.png,"a dog\nb.png,a cat\n', "is no CSV"),
    ],
)
def test_tables_that_lose_text_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    write(tmp_path / "metadata.csv", text)
    with pytest.raises(PaliglassError, match=problem):
        open_examples(tmp_path)


def test_numbers_for_labels_are_told(tmp_path: Path) -> None:
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "label": 3})
    (example,), (found,) = look(tmp_path)
    assert (example.suffix, found.severity) == ("3", "odd")


def test_pictures_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        paint(tmp_path / name / "a.png", (4, 4))
    (tmp_path / "dog" / "b.heic").write_bytes(b"")
    examples, (found,) = look(tmp_path)
    assert len(examples) == 2
    assert (found.where, found.severity) == (str(tmp_path / "dog" / "b.heic"), "left out")


def test_figures_may_be_classes(tmp_path: Path) -> None:
    for name in ("0", "1"):
        paint(tmp_path / name / "a.png", (4, 4))
    assert [e.suffix for e in open_examples(tmp_path)] == ["0", "1"]
    paint(tmp_path / "sub" / "cats" / "a.png", (4, 4))
    _, (found,) = look(tmp_path / "sub")
    assert "one class only, 'cats'" in found.problem


def objects(**changes: Any) -> dict[str, Any]:
    found = {"bbox": [[0, 0, 100, 50], [150, 50, 50, 50]], "categories": ["dog", "cat"], **changes}
    return {"file_name": "a.png", "objects": found}


def test_hugging_faces_objects_are_boxes(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png", (100, 200), orientation=6)
    second = {**objects(bbox=[[0, 0, 100, 50]], categories=["dog"]), "file_name": "b.png"}
    lines(tmp_path / "metadata.jsonl", objects(), second)
    (first, turned), findings = look(tmp_path)
    assert not findings
    assert first.prefix == turned.prefix == "detect cat ; dog"
    dog = "<loc0000><loc0000><loc0512><loc0512> dog"
    assert first.suffix == f"{dog} ; <loc0512><loc0767><loc1023><loc1023> cat"
    assert turned.suffix == dog  # of the upright picture


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"categories": [0, 1]}, "categories are numbers"),
        ({"categories": ["dog"]}, "2 boxes have 1 categories"),
        ({"bbox": [[0, 0, 1], [1, 2, 3, 4]]}, "must be a list of 4"),
        ({"bbox": [[0, 0, 0, 9], [1, 2, 3, 4]]}, "has no area"),
        ({"bbox": [[0, 0, float("nan"), 9], [1, 2, 3, 4]]}, "finite"),
        ({"bbox": "box"}, "bbox is"),
        ({"bbox": [[0, 0, 300, 9], [1, 2, 3, 4]]}, "leaves the picture of 200 × 100"),
        ({"bbox": [[-9, 0, 30, 9], [1, 2, 3, 4]]}, "leaves the picture of 200 × 100"),
        ({"categories": ["dog", "<loc0001> cat"]}, "holds <loc0001>"),
        ({"categories": ["nut; bolt", "dog"]}, "'nut; bolt' is no label"),
        ({"categories": ["dog", "Dog"]}, "are one label"),
        ({"categories": None}, "2 boxes have 0 categories"),
    ],
)
def test_wrong_objects_are_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    paint(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a dog"}, objects(**changes))
    _, findings = look(tmp_path)
    assert findings[0].where.endswith("line 2")
    assert problem in findings[0].problem


NAMES = ["coco.json", "data.jsonl", "results.jsonl", "data.yaml", "metadata.jsonl", "metadata.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(PaliglassError):
            open_examples(path)


@pytest.mark.parametrize("name", [name for name in NAMES if "json" in name])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"images":' * 100_000, "9" * 5000, '{"id": 1e400}', "NaN", '{"a": -Infinity}'],
    ids=lambda text: text[:12],
)
def test_numbers_and_nesting_beyond_reason_are_one_line(
    tmp_path: Path, name: str, text: str
) -> None:
    folder = tmp_path / "set"
    write(folder / name, text)
    findings: list[str] = []
    try:
        examples, found = look(folder if name.startswith("metadata") else folder / name)
        assert examples == []
        findings = [finding.problem for finding in found]
    except PaliglassError as error:
        findings = [str(error)]
    assert findings
    assert all("\n" not in line and len(line) < 1000 for line in findings)
