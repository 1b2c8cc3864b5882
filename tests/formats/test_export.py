"""Exports, read back by the tools they are for."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from paliglass import Box, Detection
from paliglass.errors import PaliglassError
from paliglass.evaluation.objects import Matches, match_boxes
from paliglass.formats.coco import to_coco
from paliglass.formats.csv_table import to_csv
from paliglass.formats.export import class_names, export, write_files
from paliglass.formats.yolo import yolo_places
from paliglass.tasks.boxes import encode_box
from paliglass.tasks.results import Found, Segment

WIDTH, HEIGHT = 80, 60


def ring() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(x - 40, y - 30)
    return (radius < 20) & (radius > 8)


def record(file: str, *items: Detection | Segment) -> dict:
    return {"file": file, "task": "t", "prompt": "p", **Found(items, WIDTH, HEIGHT).to_dict()}


@pytest.fixture
def boxes() -> list[dict]:
    return [
        record("d/b.png", Detection("cat", Box(10, 20, 30, 50), 0.9)),
        record("d/a.png"),
        record(
            "d/c.png",
            Detection("dog", Box(0, 0, 8, 6), 0.4),
            Detection("apple, red", Box(40.5, 30.25, 80, 60), 0.3),
        ),
    ]


@pytest.fixture
def segments() -> list[dict]:
    return [record("d/a.png", Segment("ring", Box(20, 10, 60, 50), ring(), 0.9)), record("d/b.png")]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "d").mkdir()
    for name in "abc":
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "d" / f"{name}.png")
    return tmp_path / "d"


WORDS = [
    {"file": "b.png", "task": "caption", "prompt": "caption en", "answer": "a\nb", "score": 0.5},
    {"file": "a.png", "task": "caption", "prompt": "caption en", "answer": 'c, "d"', "score": 1.0},
]


def test_json_and_its_lines(boxes) -> None:
    assert json.loads(export(boxes, "json")["results.json"]) == boxes
    lines = export(boxes, "jsonl")["results.jsonl"].splitlines()
    assert [json.loads(line) for line in lines] == boxes
    with pytest.raises(PaliglassError, match="'xml' is no format; choose json, jsonl, csv, coco"):
        export(boxes, "xml")


def test_csv_has_a_line_for_each_thing(boxes) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(boxes))))
    assert [row["label"] for row in rows] == ["cat", "dog", "apple, red"]
    assert rows[2] == {
        **{"file": "d/c.png", "width": "80", "height": "60", "label": "apple, red"},
        **{"score": "0.3", "x0": "40.5", "y0": "30.25", "x1": "80", "y1": "60"},
    }
    words = list(csv.DictReader(io.StringIO(to_csv(WORDS))))
    assert [(row["file"], row["answer"], row["score"]) for row in words] == [
        ("b.png", "a\nb", "0.5"),
        ("a.png", 'c, "d"', "1.0"),
    ]
    assert to_csv([]) == ""


def test_coco_ids_do_not_depend_on_order(boxes) -> None:
    coco = to_coco(boxes, class_names(boxes, ["dog", "bird"]))
    assert to_coco(boxes[::-1], class_names(boxes[::-1], ["dog", "bird"])) == coco
    assert {c["name"]: c["id"] for c in coco["categories"]} == {
        **{"dog": 1, "bird": 2, "apple, red": 3, "cat": 4},
    }
    assert [(i["id"], i["file_name"]) for i in coco["images"]] == [
        *((1, "d/a.png"), (2, "d/b.png"), (3, "d/c.png")),
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in coco["annotations"]] == [
        *((1, 2, 4), (2, 3, 1), (3, 3, 3)),
    ]
    assert coco["annotations"][2]["bbox"] == [40.5, 30.25, 39.5, 29.75]
    assert coco["annotations"][2]["area"] == pytest.approx(39.5 * 29.75, abs=0.01)


def test_coco_captions() -> None:
    coco = to_coco(WORDS, [])
    assert coco["annotations"] == [
        {"id": 1, "image_id": 1, "caption": 'c, "d"', "score": 1.0},
        {"id": 2, "image_id": 2, "caption": "a\nb", "score": 0.5},
    ]


def test_supervision_reads_coco(boxes, segments, pictures) -> None:
    supervision = pytest.importorskip("supervision")
    for records, masks in ((boxes, False), (segments, True)):
        local = [{**r, "file": r["file"].removeprefix("d/")} for r in records]
        write_files(pictures.parent, export(local, "coco", ["dog"]))
        data = supervision.DetectionDataset.from_coco(
            str(pictures), str(pictures.parent / "coco.json"), force_masks=masks
        )
        assert len(data) == len(records)
        for r in local:
            theirs = data.annotations[str(pictures / r["file"])]
            mine = Found.from_dict(r)
            assert theirs.xyxy.tolist() == [list(item.box) for item in mine]
            assert [data.classes[i] for i in theirs.class_id] == [item.label for item in mine]
            if masks and len(mine):
                assert (theirs.mask == [item.mask for item in mine]).all()


def test_supervision_reads_yolo(boxes, segments, pictures) -> None:
    supervision = pytest.importorskip("supervision")
    for records, masks in ((boxes, False), (segments, True)):
        write_files(pictures.parent, export(records, "yolo", ["dog"]))
        data = supervision.DetectionDataset.from_yolo(
            str(pictures),
            str(pictures.parent / "labels"),
            str(pictures.parent / "data.yaml"),
            force_masks=masks,
        )
        names = (pictures.parent / "classes.txt").read_text().splitlines()
        assert data.classes == names
        for r in records:
            theirs = data.annotations[str(pictures.parent / r["file"])]
            mine = Found.from_dict(r)
            assert [names[i] for i in theirs.class_id] == [item.label for item in mine]
            if not masks:
                assert (
                    theirs.xyxy == pytest.approx(np.array([i.box for i in mine]), abs=1e-3)
                    or not mine
                )
            elif len(mine):  # their filling takes in the pixels that the outline touches
                shared = (theirs.mask[0] & mine[0].mask).sum() / (
                    theirs.mask[0] | mine[0].mask
                ).sum()
                assert shared > 0.9
                assert not theirs.mask[0][30, 40]  # the hole


def test_yolo_mirrors_folders_and_refuses_to_share() -> None:
    assert yolo_places(["x/d/a.png", "x/e/a.png", "x/b.jpg"]) == {
        "x/d/a.png": "labels/d/a.txt",
        "x/e/a.png": "labels/e/a.txt",
        "x/b.jpg": "labels/b.txt",
    }
    assert yolo_places(["d/a.png"]) == {"d/a.png": "labels/a.txt"}
    with pytest.raises(PaliglassError, match=r"d/a\.png and d/A\.jpg would share"):
        yolo_places(["d/a.png", "d/A.jpg"])
    with pytest.raises(PaliglassError, match="no place for answers in words"):
        export(WORDS, "yolo")


class TestScores:
    """The export, scored by an independent implementation of COCO's evaluation."""

    @pytest.fixture
    def score(self):
        faster = pytest.importorskip("faster_coco_eval")

        def evaluate(truth, found, kind="bbox"):
            labels = ["cat", "dog"]
            theirs = faster.COCO(to_coco(truth, labels), print_function=lambda *_: None)
            mine = theirs.loadRes(to_coco(found, labels)["annotations"])
            run = faster.COCOeval_faster(theirs, mine, kind, print_function=lambda *_: None)
            run.run()
            return run

        return evaluate

    truth = (
        record(
            "a.png",
            Detection("cat", Box(0, 0, 20, 20), 1),
            Detection("cat", Box(40, 0, 60, 20), 1),
        ),
        record("b.png", Detection("dog", Box(10, 10, 50, 50), 1)),
    )
    found = (
        record(
            "a.png",
            Detection("cat", Box(0, 0, 20, 20), 0.9),  # right
            Detection("cat", Box(0, 40, 20, 60), 0.8),  # wrong
            Detection("cat", Box(40, 0, 60, 16), 0.7),  # right at IoU .8
        ),
        record("b.png", Detection("dog", Box(10, 10, 50, 50), 0.5)),
    )

    def test_the_truth_scores_one(self, score) -> None:
        assert score(self.truth, self.truth).stats_as_dict["AP_all"] == pytest.approx(1)

    def test_known_average_precision(self, score) -> None:
        """Cats: precision 1 up to recall ½, then ⅔, so AP = (51 + 50·⅔) / 101; dogs: 1."""
        stats = score(self.truth, self.found).stats_as_dict
        cats = (51 + 50 * 2 / 3) / 101
        assert stats["AP_50"] == pytest.approx((cats + 1) / 2, abs=1e-4)
        # Above IoU .8 the second cat is missed: AP of cats is 51 / 101 at .85, .90 and .95.
        every = (7 * cats + 3 * 51 / 101) / 10
        assert stats["AP_all"] == pytest.approx((every + 1) / 2, abs=1e-4)
        recall = ((7 * 1 + 3 * 0.5) / 10 + 1) / 2
        assert stats["AR_third"] == pytest.approx(recall, abs=1e-4)  # of 1, 10 and 100 a picture

    def test_hits_are_those_of_the_own_metric(self, score) -> None:
        run = score(self.truth, self.found)
        hits = run.stats_as_dict
        assert hits["AR_50"] == 1  # all three found
        own = Matches()
        for mine, real in zip(self.found, self.truth, strict=True):
            texts = [
                " ; ".join(f"{encode_box(i.box, WIDTH, HEIGHT)} {i.label}" for i in some)
                for some in (Found.from_dict(mine), Found.from_dict(real))
            ]
            own += match_boxes(*texts)
        assert own == Matches(matched=3, predictions=4, targets=3)
        assert own.f1 == pytest.approx(6 / 7)

    def test_masks(self, score, segments) -> None:
        relabelled = json.loads(json.dumps(segments).replace("ring", "cat"))
        stats = score(relabelled, relabelled, "segm").stats_as_dict
        assert stats["AP_all"] == pytest.approx(1)
