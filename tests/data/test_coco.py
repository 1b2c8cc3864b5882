"""COCO's JSON: what becomes of boxes, masks, crowds, captions, and of entries that are wrong."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.data.files import look, paint, write

from paliglass import load
from paliglass.data.pictures import Frame
from paliglass.data.reading import open_examples, trainable
from paliglass.errors import PaliglassError
from paliglass.evaluation.objects import mask_iou, masks_in
from paliglass.formats.polygons import fill_polygons
from paliglass.formats.rle import encode_rle
from paliglass.tasks.boxes import parse_boxes


@pytest.fixture(scope="module")
def codec():
    return load("mini").mask_codec


DOG = {"id": 1, "name": "dog"}


def image(**changes: Any) -> dict[str, Any]:
    return {"id": 7, "file_name": "a.png", "width": 200, "height": 100, **changes}


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [image()],
        "categories": [DOG, {"id": 2, "name": "red ball"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "bbox": [100, 0, 100, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [100, 50, 50, 50]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        **changes,
    }


def thing(**changes: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 1, "bbox": [10, 20, 80, 60], **changes}


def one(path: Path, *things: dict[str, Any], **how: Any):
    """The only example of a file of these annotations, and the findings."""
    (example,), findings = look(write(path / "coco.json", coco(annotations=list(things))), **how)
    return example, findings


def test_boxes_become_detect(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", coco())
    (example,) = open_examples(path, images=tmp_path / "pictures")
    assert example.images == (tmp_path / "pictures" / "a.png",)
    assert example.prefix == "detect dog ; red ball"
    assert example.suffix == (
        "<loc0000><loc0000><loc1023><loc0512> dog ; "
        "<loc0512><loc0512><loc1023><loc0767> dog ; "
        "<loc0000><loc0512><loc0512><loc1023> red ball"
    )
    assert example.where == f"{path}, images[0]"
    assert [t.label for t in parse_boxes(example.ignored)] == ["dog"]  # the crowd


def test_masks_become_segment(tmp_path: Path, codec) -> None:
    mask = np.zeros((100, 200), np.bool_)
    mask[20:80, 10:90] = True
    runs = [10 * 100 + 20, *[60, 40] * 79, 60, 110 * 100 + 20]
    segmentations: list[Any] = [
        [[10, 20, 90, 20, 90, 80, 10, 80]],
        [[10, 20, 90, 20, 90, 80], [10, 20, 90, 80, 10, 80]],  # in two parts
        encode_rle(mask),
        {"size": [100, 200], "counts": runs},  # not compressed
    ]
    suffixes = []
    for segmentation in segmentations:
        example, findings = one(
            tmp_path, thing(segmentation=segmentation), task="segment", codec=codec
        )
        assert not findings
        assert example.prefix == "segment dog ; red ball"
        suffixes.append(example.suffix)
    assert suffixes[0].startswith("<loc0205><loc0051><loc0818><loc0460><seg")
    assert suffixes[0].count("<seg") == 16
    assert suffixes[2:] == [suffixes[0]] * 2
    with pytest.raises(PaliglassError, match="a model with a mask codec"):
        open_examples(tmp_path / "coco.json", task="segment")


def test_many_masks_are_those_of_each_alone(tmp_path: Path, codec) -> None:
    """They are encoded many at a time, in the order of the annotations."""
    things = []
    for i in range(150):
        x, y = 10 + i, i % 40
        corners = [x, y, x + 20, y, x + 20 - i % 13, y + 30]
        things.append(thing(bbox=[x, y, 20, 30], segmentation=[corners]))
    together, _ = one(tmp_path, *things, task="segment", codec=codec)
    alone = [one(tmp_path, t, task="segment", codec=codec)[0].suffix for t in things[::37]]
    parts = together.suffix.split(" ; ")
    assert len(parts) == 150
    assert parts[::37] == alone


@pytest.mark.parametrize(
    ("changes", "place", "problem"),
    [
        ({"annotations": [{"image_id": 7}]}, "annotations[0]", 'lacks "category_id", "bbox"'),
        ({"annotations": [thing(category_id=9)]}, "annotations[0]", "9 is no category"),
        ({"annotations": [thing(bbox="x")]}, "annotations[0]", 'bbox is "x"; it must be a list'),
        ({"annotations": [thing(bbox=[1, 2, "3", 4])]}, "annotations[0]", 'bbox[2] is "3"'),
        ({"annotations": [thing(bbox=[1, 2, 3])]}, "annotations[0]", "must be a list of 4"),
        ({"annotations": [thing(bbox=[1, 2, float("nan"), 4])]}, "annotations[0]", "finite"),
        ({"annotations": [thing(bbox=[1, 2, float("inf"), 4])]}, "annotations[0]", "finite"),
        ({"annotations": [thing(bbox=[10**400, 2, 3, 4])]}, "annotations[0]", "bbox[0]"),
        ({"annotations": [3]}, "annotations[0]", "is no JSON object"),
        ({"images": [image(file_name=3)]}, "images[0]", "file_name is 3"),
        ({"images": [image(id=[])]}, "images[0]", "id is []"),
        ({"images": [image(width=0)]}, "images[0]", "width is 0"),
        ({"images": [image(height=-3)]}, "images[0]", "height is -3"),
        ({"images": [image(width=None)]}, "images[0]", "width is null"),
        ({"images": [image(width="100")]}, "images[0]", 'width is "100"'),
        ({"images": [image(width=1.5)]}, "images[0]", "width is 1.5"),
        ({"images": [image(width=2e5, height=2e5)]}, "images[0]", "are more than"),
        ({"images": [image(), image(file_name="b")]}, "images[1]", "id 7 is that of"),
        ({"categories": [{"id": 1, "name": "nut; bolt"}]}, "categories[0]", "'nut; bolt'"),
        ({"categories": [{"id": 1, "name": "  "}]}, "categories[0]", "is no label"),
        ({"categories": [DOG, {"id": "1", "name": "cat"}]}, "categories[1]", "is 'dog' already"),
        ({"categories": [{"id": 1, "name": ["dog"]}]}, "categories[0]", "name is"),
        ({"categories": [{"id": 1, "name": "dog <loc0001>"}]}, "categories[0]", "holds <loc0001>"),
        ({"categories": [{"id": 1, "name": "<seg001> dog"}]}, "categories[0]", "holds <seg001>"),
        ({"categories": [{"id": 1, "name": "dog<eos>"}]}, "categories[0]", "holds <eos>"),
    ],
)
def test_wrong_entries_are_named(
    tmp_path: Path, changes: dict[str, Any], place: str, problem: str
) -> None:
    """A check lists them, and a run refuses the file, with the same words."""
    data = coco(**changes)
    data["categories"].append({"id": 100, "name": "something else"})
    path = write(tmp_path / "instances.json", data)
    _, findings = look(path)
    wrong = findings.of("wrong")
    assert wrong[0].where == f"{path}, {place}"
    assert problem in wrong[0].problem
    with pytest.raises(PaliglassError) as error:
        open_examples(path)
    assert f"{path}, {place}: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"images": 3}, "images is no list"),
        ({"annotations": {}}, "annotations is no list"),
        ({"categories": [{"id": 1}]}, "no category that can be asked for"),
    ],
)
def test_what_is_no_coco_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = write(tmp_path / "instances.json", coco(**changes))
    with pytest.raises(PaliglassError, match=complaint):
        look(path)


def test_every_wrong_entry_is_told(tmp_path: Path) -> None:
    data = coco(annotations=[thing(category_id=99), {"image_id": 7}, thing(bbox="wide"), thing()])
    data["images"].append({"id": 2})
    path = write(tmp_path / "instances.json", data)
    examples, findings = look(path)
    assert [found.where.rpartition(", ")[2] for found in findings] == [
        "images[1]",
        *(f"annotations[{i}]" for i in range(3)),
    ]
    assert [example.suffix.count("<loc") for example in examples] == [4]
    with pytest.raises(PaliglassError, match="3 more such: paliglass data check"):
        open_examples(path)


@pytest.mark.parametrize("number", ["7", 7.0, "007", " 7 ", "7.0"])
def test_numbers_and_strings_meet(tmp_path: Path, number: Any) -> None:
    kind = "1" if isinstance(number, float) else "1.0"
    example, findings = one(
        tmp_path, thing(image_id=number, category_id=kind), thing(bbox=[1, 1, 9, 9])
    )
    assert not findings
    assert len(parse_boxes(example.suffix)) == 2


def test_annotations_that_meet_no_picture_are_counted(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path / "coco.json", coco(annotations=[thing(), thing(image_id=8)]))
    (example,) = open_examples(path, tell=said.append)
    assert example.suffix.count("dog") == 1
    assert "1 left out" in said[0]
    assert "annotations[1]: image_id 8 is no picture" in said[0]


def test_annotations_of_which_none_meets_a_picture_are_refused(tmp_path: Path) -> None:
    """Else every picture would be learned as one that shows nothing."""
    path = write(tmp_path / "coco.json", coco(annotations=[thing(image_id="a.png")] * 3))
    with pytest.raises(PaliglassError, match="not one has for its image_id"):
        open_examples(path)


def test_ids_given_twice_are_found(tmp_path: Path) -> None:
    _, findings = one(tmp_path, thing(id=3), thing(id="3", bbox=[1, 1, 9, 9]))
    assert "id 3 is that of" in findings[0].problem
    data = coco()
    data["images"] *= 2
    (example,), findings = look(write(tmp_path / "twice.json", data))  # the same file, twice
    assert len(parse_boxes(example.suffix)) == 3
    assert "is there already" in findings[0].problem


def test_two_entries_for_one_picture_are_taken_together(tmp_path: Path) -> None:
    """As merging two exports makes them: each alone would say that the other's are absent."""
    data = coco(annotations=[thing(), thing(image_id=8, bbox=[100, 0, 50, 50])])
    data["images"].append({**data["images"][0], "id": 8})
    (example,), findings = look(write(tmp_path / "coco.json", data))
    assert len(parse_boxes(example.suffix)) == 2
    assert "taken together" in findings[0].problem


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([], "no segmentation"),
        ([[]], "a polygon of 0 numbers"),
        ({}, "no segmentation"),
        ([10, 20, 90, 20, 90, 80], "must be a list"),
        ([[[10, 20], [90, 20], [90, 80]]], "must be a number"),
        ([[10, 20, 90, 20, 90, 80], [1, 2]], "a polygon of 2 numbers"),
        ({"size": [100, 200], "counts": []}, "do not add up"),
        ({"size": [100, 200], "counts": [-1, 20001]}, "do not add up"),
        (None, "no segmentation"),
        ([[10, 20, 90, 80]], "a polygon of 4 numbers"),
        ([[10, 20, 90, 80, 5]], "a polygon of 5 numbers"),
        ([[150, 10, 180, 10, 180, 40, 150, 40]], "no pixel inside its bbox"),
        ([[20, 30, 20, 30, 20, 30]], "no pixel inside its bbox"),
        ([[float("nan"), 20, 90, 20, 90, 80]], "not finite"),
        ([[1e9, 20, -1e9, 20, 90, 80]], "far larger"),
        ([["a", 20, 90, 20, 90, 80]], "must be a number"),
        ({"size": [200, 100], "counts": [0, 20000]}, "run lengths are of 100 × 200 pixels"),
        ({"size": [100, 200], "counts": [0, 7]}, "do not add up"),
        ({"size": [100, 200], "counts": "oooooooooooooooooooo"}, "text that is not run lengths"),
        ({"size": [100, 200], "counts": [20000]}, "no pixel inside its bbox"),
        ({"size": [100, 200]}, "counts"),
        ("polygon", "must be"),
    ],
)
def test_masks_without_a_pixel_are_left_out(
    tmp_path: Path, codec, segmentation: Any, problem: str
) -> None:
    """Never taught: neither an empty mask, nor that nothing is where something is."""
    example, findings = one(tmp_path, thing(segmentation=segmentation), task="segment", codec=codec)
    assert [found.where.rpartition(", ")[2] for found in findings] == ["annotations[0]"]
    assert problem in findings[0].problem
    assert findings[0].severity == "left out"
    assert example.is_partial
    with pytest.raises(PaliglassError, match="nothing that a model can say"):
        trainable([example])
    other = thing(bbox=[100, 50, 50, 50], segmentation=[[100, 50, 150, 50, 150, 100, 100, 100]])
    both, _ = one(tmp_path, thing(segmentation=segmentation), other, task="segment", codec=codec)
    assert len(parse_boxes(both.suffix)) == 1
    assert trainable([both]) == [both]


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([10, 10, 0, 10], "has no area"),
        ([10, 10, 10, -1], "has no area"),
        ([-50, 10, 40, 10], "nothing of it is inside"),
        ([200, 0, 10, 10], "nothing of it is inside"),
        ([10, 10, 0.05, 10], "thinner than a step"),
    ],
)
def test_boxes_that_cannot_be_said_are_left_out(
    tmp_path: Path, bbox: list[float], problem: str
) -> None:
    example, findings = one(tmp_path, thing(bbox=bbox))
    assert problem in findings[0].problem
    assert findings[0].severity == "left out"
    assert example.suffix == ""
    assert example.is_partial


def test_a_pixel_of_four_thousand_is_left_out_but_no_more_than_that(tmp_path: Path) -> None:
    data = coco(annotations=[thing(bbox=[1000, 0, 1, 2000]), thing(bbox=[1000, 0, 6, 2000])])
    data["images"][0] |= {"width": 4000, "height": 2000}
    (example,), findings = look(write(tmp_path / "coco.json", data))
    assert len(findings) == 1
    [kept] = parse_boxes(example.suffix)
    assert kept.box.x0 * 4000 == pytest.approx(1003, abs=4)


@pytest.mark.parametrize("bbox", [[-40, 10, 80, 60], [150, -20, 100, 60], [-9, -9, 300, 300]])
def test_what_leaves_the_picture_is_cut_before_its_mask_is_encoded(
    tmp_path: Path, codec, bbox: list[float]
) -> None:
    x, y, width, height = bbox
    outline = [x, y, x + width, y, x + width / 2, y + height]
    example, findings = one(
        tmp_path, thing(bbox=bbox, segmentation=[outline]), task="segment", codec=codec
    )
    assert "leaves the picture" in findings[0].problem
    [(_, mask)] = masks_in(example.suffix, codec, 100, 200)
    assert mask_iou(mask, fill_polygons([outline], 100, 200)) > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_exif_turns_is_turned(tmp_path: Path, codec, orientation: int) -> None:
    """Annotated as stored: box and mask are where the same things are in the upright picture."""
    picture = paint(tmp_path / "a.png", (200, 100), orientation)
    outline = [10, 20, 90, 20, 10, 80]
    example, findings = one(tmp_path, thing(segmentation=[outline]), task="segment", codec=codec)
    mask = fill_polygons([outline], 100, 200)
    if orientation >= 5:
        assert "turned with it" in findings[0].problem
        mask = Frame(orientation).mask(mask.astype(np.float32)) > 0
    elif orientation > 1:
        assert "taken to be of the turned picture" in findings[0].problem
    else:
        assert not findings
    height, width = mask.shape
    with Image.open(picture) as opened:
        assert ImageOps.exif_transpose(opened).size == (width, height)
    [(_, found)] = masks_in(example.suffix, codec, height, width)
    assert mask_iou(found, mask) > 0.9


def test_annotations_of_the_upright_picture_stay(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (100, 200), orientation=6)  # upright 200 × 100
    example, findings = one(tmp_path, thing())
    assert not findings
    assert example.suffix == "<loc0205><loc0051><loc0818><loc0460> dog"


def test_sizes_are_compared(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (400, 200))
    example, findings = one(tmp_path, thing())
    assert (findings[0].severity, "they scale" in findings[0].problem) == ("odd", True)
    assert example.suffix == "<loc0205><loc0051><loc0818><loc0460> dog"
    paint(tmp_path / "a.png", (200, 150))
    example, findings = one(tmp_path, thing())
    assert "has 200 × 150 pixels, its annotations are of 200 × 100" in findings[0].problem
    assert findings[0].severity == "left out"
    assert example.is_partial


def test_crowds_alone_are_not_nothing(tmp_path: Path) -> None:
    example, findings = one(tmp_path, thing(iscrowd=1))
    assert not findings
    assert example.is_partial
    with pytest.raises(PaliglassError, match="nothing that a model can say"):
        trainable([example])


@pytest.mark.parametrize("parent", ["presence-of-dogs", "Presence-Of-Dogs", "presence-of-dogs "])
def test_roboflows_parent_class_is_not_asked_for(tmp_path: Path, parent: str) -> None:
    categories = [
        {"id": 0, "name": "presence-of-dogs", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": parent},
    ]
    path = write(tmp_path / "coco.json", coco(categories=categories, annotations=[thing()]))
    (example,), findings = look(path)
    assert example.prefix == "detect dog"
    assert "'presence-of-dogs'" in findings[0].problem
    used = coco(categories=categories, annotations=[thing(), thing(category_id=0)])
    (example,), findings = look(write(tmp_path / "used.json", used))
    assert example.prefix == "detect presence-of-dogs ; dog"
    assert not findings


def test_names_have_one_form_on_both_sides(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "hot  dog "},
        {"id": 2, "name": "Hot Dog"},
        {"id": 3, "name": 7},
    ]
    annotations = [thing(category_id=number, bbox=[number, 1, 50, 50]) for number in (1, 2, 3)]
    path = write(tmp_path / "coco.json", coco(categories=categories, annotations=annotations))
    (example,), findings = look(path)
    assert example.prefix == "detect hot dog ; 7"
    assert [t.label for t in parse_boxes(example.suffix)] == ["hot dog", "hot dog", "7"]
    assert "are one label" in findings[0].problem


def captions(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 7, "caption": "A dog.\n"},
            {"image_id": "7", "caption": "One  dog."},
        ],
        **changes,
    }


@pytest.mark.parametrize("changes", [{}, {"categories": []}])
def test_captions(tmp_path: Path, changes: dict[str, Any]) -> None:
    examples = open_examples(write(tmp_path / "captions.json", captions(**changes)))
    assert [e.suffix for e in examples] == ["A dog.", "One dog."]
    assert {e.prefix for e in examples} == {"caption en"}


@pytest.mark.parametrize(
    ("annotation", "severity", "problem"),
    [
        ({"image_id": 7, "caption": None}, "left out", "caption is null"),
        ({"image_id": 7, "caption": " "}, "left out", "the suffix is empty"),
        ({"image_id": 8, "caption": "A cat"}, "left out", "image_id 8 is no picture"),
        ({"image_id": 7, "caption": ["A cat"]}, "wrong", "caption is"),
        ({"image_id": 7}, "wrong", 'lacks "caption"'),
    ],
)
def test_wrong_captions_are_named(
    tmp_path: Path, annotation: dict[str, Any], severity: str, problem: str
) -> None:
    data = captions(annotations=[{"image_id": 7, "caption": "A dog."}, annotation])
    _, (found,) = look(write(tmp_path / "captions.json", data))
    assert found.severity == severity
    assert found.where.endswith("annotations[1]")
    assert problem in found.problem


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_marks_at_the_beginning_are_passed_over(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "coco.json"
    path.write_bytes(json.dumps(coco(), ensure_ascii=False).encode(encoding))
    (example,) = open_examples(path)
    assert example.prefix == "detect dog ; red ball"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_data_itself_may_be_composed_otherwise(tmp_path: Path, form: Any) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    there, named = (tmp_path / unicodedata.normalize(f, "Übung") for f in (form, other))
    paint(there / "a.png")
    write(there / "_annotations.coco.json", coco())
    for data in (named, named / "_annotations.coco.json"):
        (example,) = open_examples(data)
        assert example.images[0].is_file()
    (example,) = open_examples(write(tmp_path / "c.json", coco()), images=named)
    assert example.images[0].is_file()


def test_names_of_other_systems_meet_their_files(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    paint(tmp_path / "sub" / composed)
    for name in (f"sub\\{composed}", f"sub/{apart}", f"sub\\{apart}"):
        data = coco()
        data["images"][0]["file_name"] = name
        (example,) = open_examples(write(tmp_path / "coco.json", data))
        assert example.images[0].is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": [image(width=0)]},
        {"images": [image(file_name=3)]},
        {"images": [image(width=10**6, height=10**6)]},
        {"categories": [{"id": 1, "name": "a;b"}, {"id": 2, "name": ";"}]},
        {"categories": [{"id": 1}, {"id": "2"}]},
    ],
)
def test_what_is_wrong_is_told_once_and_not_for_each_annotation(tmp_path: Path, wrong: Any) -> None:
    data = coco(**wrong)
    data["images"] = [*data["images"], image(id=8, file_name="b.png")]
    data["categories"] = [*data["categories"], {"id": 3, "name": "cat"}]
    data["annotations"].append(thing(image_id=8, category_id=3))
    _, findings = look(write(tmp_path / "coco.json", data))
    [changed] = wrong.values()
    assert len(findings) == len(changed)
    assert all(finding.severity == "wrong" for finding in findings)


@pytest.mark.parametrize(
    ("boxes", "severity"),
    [
        ([[100, 50, 150, 90], [120, 0, 200, 60], [10, 60, 90, 100]], "wrong"),
        ([[0, 0, 50, 50], [150, 10.5, 199, 30], [20, 60, 40, 90]], "wrong"),  # one would fit
        ([[100, 50, 150, 90]], "odd"),  # too few to be sure
        ([[100, 50, 100, 60], [0, 0, 9, 9], [1, 1, 8, 8]], None),  # a box cut off is no more
        ([[100, 50, 60, 90], [150, 0, 60, 60], [50, 60, 160, 100]], None),  # no corners
        ([[0, 0, 200, 100], [0, 0, 50, 50], [1, 1, 80, 60]], None),
    ],
)
def test_corners_in_place_of_width_and_height_are_named(
    tmp_path: Path, boxes: list[list[float]], severity: str | None
) -> None:
    _, findings = one(tmp_path, *(thing(bbox=box) for box in boxes))
    said = [found for found in findings if "x0, y0, x1, y1" in found.problem]
    assert [found.severity for found in said] == [severity] * (severity is not None)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/data/upload/3/0f1e2d3c-a.png", "3/0f1e2d3c-a.png"),
        ("/data/upload/3/0f1e2d3c-a.png", "0f1e2d3c-a.png"),
        ("../../label-studio/data/media/upload/3/0f1e2d3c-a.png", "3/0f1e2d3c-a.png"),
        ("data\\upload\\3\\a b.png", "a b.png"),
        ("/data/upload/a.png", "a.png"),
        ("/data/upload/3/u\u0308.png", "3/ü.png"),
    ],
)
def test_label_studios_uploads_meet_their_files(tmp_path: Path, name: str, file: str) -> None:
    paint(tmp_path / "pictures" / file)
    data = write(tmp_path / "coco.json", coco(images=[image(file_name=name)]))
    (example,) = open_examples(data, images=tmp_path / "pictures")
    assert example.images[0].is_file()
