"""The answers' grammar: boxes in and out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliglass.tasks.boxes import Box, encode_box, parse_boxes
from paliglass.tasks.results import Detection


def test_order_is_y_x_y_x() -> None:
    [found] = parse_boxes("<loc0000><loc0341><loc0682><loc1023> dog")
    assert found.label == "dog"
    assert found.box == pytest.approx((341 / 1023, 0, 1, 682 / 1023))
    assert encode_box(Box(30, 0, 90, 60), 90, 90) == "<loc0000><loc0341><loc0682><loc1023>"


def test_edges_are_encoded_by_rounding_to_1023rds() -> None:
    assert encode_box(Box(0.2501, 0.5, 1, 1), 1, 1) == "<loc0512><loc0256><loc1023><loc1023>"
    assert encode_box(Box(-5, -5, 99, 99), 10, 10) == "<loc0000><loc0000><loc1023><loc1023>"


edge = st.integers(0, 1023)
label = st.text(st.characters(codec="utf-8", exclude_characters="<;"), max_size=20)


@given(st.lists(st.tuples(edge, edge, edge, edge, label), max_size=6))
def test_boxes_survive_the_round_trip(parts: list[tuple[int, int, int, int, str]]) -> None:
    """Any label: accents, other scripts, digits, punctuation."""
    boxes = [
        (Box(min(a, b), min(c, d), max(a, b), max(c, d)), name.strip())
        for a, b, c, d, name in parts
        if a != b and c != d
    ]
    answer = " ; ".join(f"{encode_box(box, 1023, 1023)} {name}" for box, name in boxes)
    found = parse_boxes(answer)
    assert [f.label for f in found] == [name for _, name in boxes]
    for parsed, (box, _) in zip(found, boxes, strict=True):
        assert parsed.box == pytest.approx([e / 1023 for e in box])
        assert answer[parsed.start : parsed.end].startswith("<loc")


@given(
    st.lists(
        st.sampled_from(
            "<loc0000> <loc0512> <loc1023> <loc1024> <loc12> <seg001> < loc ; dog é".split()
        ),
        max_size=30,
    )
)
def test_no_answer_whatever_breaks_the_parser(parts: list[str]) -> None:
    for found in parse_boxes(" ".join(parts).replace("> <", "><")):
        assert 0 <= found.box.x0 < found.box.x1 <= 1
        assert 0 <= found.box.y0 < found.box.y1 <= 1
        assert "<" not in found.label


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "dog",
        "<loc0001><loc0002><loc0003> dog",
        "<loc0001><loc0002><loc1024><loc0004> dog",
        "<loc0009><loc0002><loc0003><loc0004> upside down",
        "<loc0001><loc0002><loc0003><loc0002> no width",
    ],
)
def test_what_is_no_box_is_passed_over(answer: str) -> None:
    assert parse_boxes(answer) == []
    good = "<loc0001><loc0002><loc0003><loc0004> cat"
    assert [f.label for f in parse_boxes(f"{answer} ; {good}")] == ["cat"]


def test_a_segment_answer_gives_its_box() -> None:
    segment = "".join(f"<seg{i:03}>" for i in range(16))
    [found] = parse_boxes(f"<loc0001><loc0002><loc0003><loc0004>{segment} cat")
    assert found.label == "cat"


def test_results_are_plain_json() -> None:
    found = Detection("dog", Box(1.23456, 0, 10, 20), 0.987654)
    text = json.dumps(found.to_dict())
    assert json.loads(text) == {"label": "dog", "box": [1.23, 0, 10, 20], "score": 0.9877}
