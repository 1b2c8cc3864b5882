"""Typed results, and what other tools read of them."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys

import numpy as np
import pytest
from PIL import Image
from tests.formats.shapes import disc

from paliglass import Box
from paliglass.errors import PaliglassError
from paliglass.formats.rle import decode_rle
from paliglass.tasks.results import Answer, Detection, Found, Segment


class TestAnswer:
    def test_it_is_its_text(self) -> None:
        answer = Answer("two dogs", 0.87654)
        assert answer == "two dogs"
        assert hash(answer) == hash("two dogs")
        assert {"two dogs": 1}[answer] == 1
        told = {"answer": "two dogs", "score": 0.8765, "finish_reason": "stop"}
        assert answer.to_dict() == told
        cut = Answer("two dogs", 0.87654, "length")
        assert cut.to_dict() == {**told, "finish_reason": "length"}
        assert json.dumps(answer) == '"two dogs"'

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_copies_keep_the_score(self, copied) -> None:
        assert copied(Answer("é", 0.5)).score == 0.5

    def test_pickles_keep_the_score(self) -> None:
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(Answer("é", 0.5), protocol))
            assert (again, again.score, type(again)) == ("é", 0.5, Answer)


class TestMasks:
    def test_a_png_is_the_mask(self) -> None:
        import io

        segment = Segment("ring", Box(0, 0, 80, 60), disc(), 0.5)
        with Image.open(io.BytesIO(segment.mask_png())) as image:
            assert image.mode == "1"
            assert (np.asarray(image) == disc()).all()


@pytest.fixture
def boxes() -> Found[Detection]:
    items = [Detection("dog", Box(10, 20, 30.25, 50), 0.9), Detection("cat", Box(0, 0, 8, 6), 0.4)]
    return Found(items, 80, 60)


@pytest.fixture
def segments() -> Found[Segment]:
    two = np.zeros((60, 80), bool)
    two[0:6, 0:4] = two[0:6, 5:8] = True
    items = [Segment("ring", Box(16, 6, 64, 54), disc(), 0.9)]
    return Found([*items, Segment("pair", Box(0, 0, 8, 6), two, 0.4)], 80, 60)


class TestFound:
    def test_it_is_a_list(self, boxes) -> None:
        assert boxes == list(boxes)
        assert [item.label for item in boxes.above(0.5)] == ["dog"]
        assert len(boxes.above(0.9)) == 1
        assert boxes.above(0.95) == []
        again = pickle.loads(pickle.dumps(boxes))
        assert (again, again.width, again.height) == (boxes, 80, 60)

    def test_a_part_of_it_is_of_the_same_picture(self, boxes) -> None:
        part = boxes[1:]
        assert type(part) is Found
        assert part == list(boxes)[1:]
        assert (part.width, part.height) == (80, 60)
        assert part.picture is boxes.picture
        assert boxes[-1] is list(boxes)[-1]

    def test_json_and_back(self, boxes, segments) -> None:
        for found in (boxes, segments, Found([], 3, 4)):
            again = Found.from_dict(json.loads(json.dumps(found.to_dict())))
            assert again == found
            assert (again.width, again.height) == (found.width, found.height)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"width": None}, "width is null; it must be a whole number"),
            ({"detections": [{"label": "dog"}]}, "box"),
            ({"detections": [{"label": "a", "box": [1, 2], "score": 1}]}, "box is [1, 2]; it must"),
            ({"detections": [{"label": 1, "box": [1, 2, 3, 4], "score": 1}]}, "must be text"),
            ({"finish_reason": "why"}, "finish_reason"),
        ],
    )
    def test_what_lacks_in_a_record_is_named(self, boxes, change, said) -> None:
        with pytest.raises(PaliglassError, match=re.escape(said)):
            Found.from_dict(boxes.to_dict() | change)
        with pytest.raises(PaliglassError, match='lacks "width", "height", "detections"'):
            Found.from_dict({})

    def test_a_mask_that_does_not_add_up_is_named(self, segments) -> None:
        record = segments.to_dict()
        for mask in ({"size": [3, 4], "counts": [1]}, {"size": 3, "counts": ""}, {"size": [3, 4]}):
            record["detections"][0]["mask"] = mask
            with pytest.raises(PaliglassError, match=r"the mask of 'ring' is no run lengths \("):
                Found.from_dict(record)

    @pytest.mark.parametrize("scale", [0, -1, 1.5, "2"])
    def test_a_picture_is_drawn_a_whole_number_of_times_as_large(self, boxes, scale) -> None:
        picture = Image.new("RGB", (80, 60))
        assert boxes.draw(picture, np.int64(3)).size == (240, 180)
        with pytest.raises(PaliglassError, match=f"scale is {scale!r}; it must be a whole number"):
            boxes.draw(picture, scale)

    def test_segments_differ_by_a_pixel(self, segments) -> None:
        ring = segments[0]
        mask = ring.mask.copy()
        mask[0, 0] ^= True
        assert ring != Segment(ring.label, ring.box, mask, ring.score)
        assert ring != "ring"
        assert hash(ring) == hash(Segment(ring.label, ring.box, disc(), ring.score))

    def test_coco(self, boxes, segments) -> None:
        first, second = boxes.to_coco(image_id=7, first_id=3)
        assert first == {
            "id": 3,
            "image_id": 7,
            "category_id": 2,  # cat, dog
            "bbox": [10, 20, 20.25, 30],
            "area": 607.5,
            "iscrowd": 0,
            "score": 0.9,
        }
        assert (second["id"], second["category_id"]) == (4, 1)
        ring, _ = segments.to_coco(categories={"ring": 5, "pair": 9})
        assert (ring["category_id"], ring["area"]) == (5, int(disc().sum()))
        assert (decode_rle(ring["segmentation"]) == disc()).all()

    def test_yolo_boxes(self, boxes) -> None:
        assert boxes.to_yolo(["cat", "dog"]) == [
            "1 0.251563 0.583333 0.253125 0.500000",
            "0 0.050000 0.050000 0.100000 0.100000",
        ]

    def test_yolo_masks_are_one_polygon_each(self, segments) -> None:
        lines = segments.to_yolo(["ring", "pair"])
        for line, segment in zip(lines, segments, strict=True):
            values = np.array(line.split()[1:], float).reshape(-1, 2) * (80, 60)
            ring = [(round(x), round(y)) for x, y in values.tolist()]
            # Seams between parts are walked there and back: they enclose nothing.
            area = sum(
                xa * yb - xb * ya
                for (xa, ya), (xb, yb) in zip(ring, ring[1:] + ring[:1], strict=True)
            )
            assert area / 2 == segment.mask.sum()
        assert [line.split()[0] for line in lines] == ["0", "1"]

    def test_unknown_classes_are_named(self, boxes) -> None:
        for convert in (boxes.to_yolo, boxes.to_supervision):
            with pytest.raises(PaliglassError, match="'dog' is not among the classes"):
                convert(["cat"])

    def test_supervision(self, boxes, segments) -> None:
        pytest.importorskip("supervision")
        theirs = boxes.to_supervision()
        assert theirs.xyxy.tolist() == [list(item.box) for item in boxes]
        assert theirs.confidence.tolist() == pytest.approx([0.9, 0.4])
        assert theirs.class_id.tolist() == [1, 0]
        assert theirs.data["class_name"].tolist() == ["dog", "cat"]
        assert theirs.mask is None
        assert (segments.to_supervision().mask == [s.mask for s in segments]).all()
        assert segments.to_supervision(["pair", "ring"]).class_id.tolist() == [1, 0]
        assert len(Found([], 5, 5).to_supervision()) == 0

    def test_without_supervision_it_says_what_to_install(self, boxes, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(PaliglassError, match=r"pip install 'paliglass\[eval\]'"):
            boxes.to_supervision()

    def test_another_pictures_results_are_not_drawn(self, boxes) -> None:
        with pytest.raises(PaliglassError, match="10 × 60 pixels"):
            boxes.draw(Image.new("RGB", (10, 60)))


@pytest.mark.parametrize("edge", [1 / 3, 1e3 / 7, np.float32(0.1), 0, -2.0, 12345.678])
def test_what_python_prints_is_short(edge: float) -> None:
    box = Box(edge, edge, 300.25, 4000)
    short = f"{edge:.2f}".rstrip("0").rstrip(".")
    assert repr(box) == f"Box(x0={short}, y0={short}, x1=300.25, y1=4000)"
    assert repr(Detection("red dog", box, 2 / 3)) == f"Detection('red dog', {box!r}, score=0.6667)"
    thing = Segment("dog", box, disc(40), 1.0)
    area = int(disc(40).sum())
    size = f"{disc(40).shape[1]} × {disc(40).shape[0]}"
    assert repr(thing) == f"Segment('dog', {box!r}, {area:,} of {size} pixels, score=1.0000)"
