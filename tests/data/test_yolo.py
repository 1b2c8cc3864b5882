"""YOLO's data.yaml and label files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.files import look, paint, write

from paliglass import Box, Detection, load
from paliglass.data.reading import open_examples
from paliglass.errors import PaliglassError
from paliglass.evaluation.objects import mask_iou, masks_in
from paliglass.formats.export import export, write_files
from paliglass.formats.polygons import fill_polygons
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.results import Found

DOG = "<loc0256><loc0256><loc0767><loc0512> dog"


def yolo(
    folder: Path, labels: str, yaml: str = "names: [dog, cat]\ntrain: ../train/images\n"
) -> Path:
    """As Roboflow exports it, whose paths begin with one step up too many."""
    paint(folder / "train/images/a.jpg")
    write(folder / "train/labels/a.txt", labels)
    return write(folder / "data.yaml", yaml)


def test_boxes_become_detect(tmp_path: Path) -> None:
    yolo(tmp_path, "1 0.9 0.9 0.2 0.2\n0 0.375 0.5 0.25 0.5\n")
    (example,), findings = look(tmp_path)
    assert not findings
    assert example.images == (tmp_path / "train/images/a.jpg",)
    assert example.prefix == "detect dog ; cat"
    assert example.suffix == f"{DOG} ; <loc0818><loc0818><loc1023><loc1023> cat"


def test_polygons_become_boxes_or_masks(tmp_path: Path) -> None:
    codec = load("mini").mask_codec
    path = yolo(tmp_path, "0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    (example,) = open_examples(path)
    assert example.suffix == DOG
    (example,) = open_examples(path, task="segment", codec=codec)
    [(_, mask)] = masks_in(example.suffix, codec, 100, 200)
    assert mask_iou(mask, fill_polygons([[50, 25, 100, 25, 100, 75, 50, 75]], 100, 200)) > 0.95
    yolo(tmp_path, "0 0.375 0.5 0.25 0.5\n")
    (example,), (found,) = look(path, task="segment", codec=codec)
    assert "a box has no mask" in found.problem
    assert example.is_partial


@pytest.mark.parametrize(
    "yaml",
    [
        "names: {0: dog, 1: cat}\npath: train\ntrain: images\n",
        "names:\n  0: dog\n  1: cat\ntrain: [train/images]\nval: other\n",
        "names: [dog, cat]\ntrain: list.txt\n",
        "names: [dog, cat]\nnc: 2\ntrain: ..\\train\\images\n",
        "names: {'0': dog, '1': cat}\ntrain: train/images\n",
        "\ufeffnames: {1: cat, 0: dog}\ntrain: train/images\n",
    ],
)
def test_forms_of_data_yaml(tmp_path: Path, yaml: str) -> None:
    write(tmp_path / "list.txt", "train/images/a.jpg\n")
    yolo(tmp_path, "0 0.375 0.5 0.25 0.5", yaml)
    (example,) = open_examples(tmp_path)
    assert (example.prefix, example.suffix) == ("detect dog ; cat", DOG)


def test_splits_are_told_apart(tmp_path: Path) -> None:
    path = yolo(tmp_path, "", "names: [dog]\ntrain: train/images\nval: valid/images\n")
    paint(tmp_path / "valid/images/b.jpg")
    write(tmp_path / "valid/labels/b.txt", "")
    assert [e.images[0].name for e in open_examples(path)] == ["a.jpg"]
    assert [e.images[0].name for e in open_examples(path, split="held out")] == ["b.jpg"]
    assert len(open_examples(path, split="all")) == 2
    path = yolo(tmp_path, "")
    with pytest.raises(PaliglassError, match="has no pictures of val or test; it has train"):
        open_examples(path, split="held out")


@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")])
def test_label_studios_folder_is_read(tmp_path: Path, mark: str, end: str) -> None:
    write(tmp_path / "classes.txt", f"{mark}dog{end}cat{end}")
    paint(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", f"{mark}0 0.375 0.5 0.25 0.5{end}")
    (example,) = open_examples(tmp_path)
    assert (example.prefix, example.suffix) == ("detect dog ; cat", DOG)


def test_what_is_exported_is_read(tmp_path: Path) -> None:
    found = Found([Detection("dog", Box(50, 25, 100, 75), 0.9)], 200, 100)
    write_files(tmp_path, export([{"file": "a.png", **found.to_dict()}], "yolo", ["dog"]))
    paint(tmp_path / "images/a.png")
    (example,) = open_examples(tmp_path)
    assert (example.prefix, example.suffix) == ("detect dog", DOG)


@pytest.mark.parametrize(
    ("labels", "severity", "problem"),
    [
        ("dog 0.5 0.5 0.1 0.1", "wrong", "is no line of numbers"),
        ("0 0.5 0.5", "wrong", "has 2 numbers behind the class"),
        ("0 0.5 0.5 0.1 0.1 0.9", "wrong", "has 5 numbers behind the class"),
        ("0.5 0.5 0.5 0.1 0.1", "wrong", "a class is a whole number"),
        ("-1 0.5 0.5 0.1 0.1", "wrong", "a class is a whole number"),
        ("0 nan 0.5 0.1 0.1", "wrong", "finite"),
        ("0 320 200 50 40", "wrong", "its numbers are pixels"),
        ("7 0.5 0.5 0.1 0.1", "wrong", "class 7 is none of the 2"),
        ("0 0.5 0.5 0.0 0.1", "left out", "no area"),
        ("0 0.4 0.5 0.0001 0.1", "left out", "thinner than a step"),
        ("0 1.3 0.5 0.1 0.1", "left out", "no area in the picture"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, labels: str, severity: str, problem: str) -> None:
    path = yolo(tmp_path, f"\n{labels}\n1 0.9 0.9 0.2 0.2\n")
    (example,), (found,) = look(path)
    assert found.where == f"{tmp_path / 'train/labels/a.txt'}, line 2"
    assert found.severity == severity
    assert problem in found.problem
    assert [t.label for t in parse_boxes(example.suffix)] == ["cat"]


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("names: [", "is not YAML"),
        ("- dog", "is no JSON object"),
        ("train: images", 'lacks "names"'),
        ("names: 3\ntrain: train/images", "names is 3"),
        ("names: []\ntrain: train/images", "names no class"),
        ("names: ['nut; bolt', dog]\ntrain: train/images", "'nut; bolt' is no label"),
        ("names: [dog]\ntrain: nowhere", "no such folder or list of pictures"),
        ("names: [dog]\ntrain: train/labels", "there are no pictures"),
        ("names: [dog]\ntrain: {a: 1}", "train is"),
        ("[" * 5000, "is not YAML"),
        ("names: [dog]\nnc: 2\ntrain: train/images", "nc is 2, and names has 1"),
        ("names: {a: dog}\ntrain: train/images", "has a number for each class"),
        ("names: [dog]\nkpt_shape: [17, 2]\ntrain: train/images", "is of poses"),
        ("names: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_wrong_yaml_is_named(tmp_path: Path, yaml: str, complaint: str) -> None:
    path = yolo(tmp_path, "", yaml)
    with pytest.raises(PaliglassError) as error:
        open_examples(path)
    assert str(tmp_path) in str(error.value)
    assert complaint in str(error.value)


@pytest.mark.parametrize("folder", ["train/labels2", "train/images/labels", "labels"])
def test_pictures_of_which_none_has_labels_are_refused(tmp_path: Path, folder: str) -> None:
    """Else every picture would be learned as one that shows nothing."""
    path = yolo(tmp_path, "0 0.5 0.5 0.1 0.1")
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "train/labels").rename(tmp_path / folder)
    with pytest.raises(PaliglassError, match="not one of its 1 pictures has labels"):
        open_examples(path)


@pytest.mark.parametrize("names", [["b.txt"], ["b.txt", "c.txt"]])
def test_labels_that_meet_no_picture_are_told(tmp_path: Path, names: list[str]) -> None:
    path = yolo(tmp_path, "0 0.375 0.5 0.25 0.5")
    write(tmp_path / "train/labels/classes.txt", "dog")  # labelImg's
    for name in names:
        write(tmp_path / "train/labels" / name, "0 0.5 0.5 0.1 0.1")
    (example,), (found,) = look(path)
    assert example.suffix == DOG
    assert (found.where, found.severity) == (str(tmp_path / "train/labels/b.txt"), "left out")
    assert found.problem == "has no picture" + (", nor have 1 others" if names[1:] else "")
