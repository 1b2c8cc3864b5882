"""Boxes in text: written, and read again from whatever a model says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliglass.tasks.boxes import Box, encode_box, parse_boxes


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
        assert "<loc0" not in found.label
        assert "<seg" not in found.label


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


codes = st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple)


def written(edges: tuple[int, ...], name: str, own: tuple[int, ...] = ()) -> str:
    tokens = [f"<loc{edge:04}>" for edge in edges] + [f"<seg{code:03}>" for code in own]
    return "".join(tokens) + f" {name}"


@given(codes, label)
def test_a_mask_has_sixteen_codes(own: tuple[int, ...], name: str) -> None:
    [found] = parse_boxes(written((1, 2, 3, 4), name, own))
    assert found.codes == own
    assert found.label == name.strip()
    [shorter] = parse_boxes(written((1, 2, 3, 4), name, own[1:]))
    [longer] = parse_boxes(written((1, 2, 3, 4), name, (*own, 0)))
    [without] = parse_boxes(written((1, 2, 3, 4), name))
    assert shorter.codes is longer.codes is without.codes is None


def test_a_code_beyond_the_codebook_is_no_code() -> None:
    [found] = parse_boxes(written((1, 2, 3, 4), "cat", (128,) * 16))
    assert found.codes is None


@given(st.text())
def test_any_text_can_be_parsed(answer: str) -> None:
    assert parse_boxes(answer) == []  # nobody writes four location tokens by chance


pieces = st.sampled_from(
    "<loc0000> <loc0512> <loc1023> <loc1024> <loc12> <seg001> <seg999> < loc dog é ٣ \n".split(" ")
)
garbage = st.lists(pieces, max_size=3).map(lambda parts: " ".join(parts) + " ; ")
span = st.lists(edge, min_size=2, max_size=2, unique=True).map(sorted)
thing = st.tuples(span, span, st.none() | codes, label)


@given(st.lists(st.tuples(garbage, thing), max_size=5))
def test_well_formed_objects_are_found_between_garbage(parts: list[Any]) -> None:
    answer, expected = "", []
    for rubbish, ((y0, y1), (x0, x1), own, name) in parts:
        answer += rubbish + written((y0, x0, y1, x1), name, own or ()) + " ; "
        expected.append((name.strip(), own, Box(x0 / 1023, y0 / 1023, x1 / 1023, y1 / 1023)))
    found = parse_boxes(answer)
    assert [(f.label, f.codes) for f in found] == [(name, own) for name, own, _ in expected]
    assert [f.box for f in found] == [box for *_, box in expected]


@given(thing, thing)
def test_a_missing_separator_loses_nothing(one: Any, two: Any) -> None:
    answer = ""
    for (y0, y1), (x0, x1), own, name in (one, two):
        answer += written((y0, x0, y1, x1), name or "x", own or ())
    assert [f.codes for f in parse_boxes(answer)] == [one[2], two[2]]


def test_of_too_many_edges_the_last_four_are_the_box() -> None:
    [found] = parse_boxes("<loc0009>" + written((1, 2, 3, 4), "cat"))
    assert found.box == Box(2 / 1023, 1 / 1023, 4 / 1023, 3 / 1023)


coordinate = st.floats(0, 1)


@given(coordinate, coordinate, coordinate, coordinate, st.integers(1, 5000), st.integers(1, 5000))
def test_encoding_loses_half_a_bin_at_most(
    x0: float, y0: float, x1: float, y1: float, width: int, height: int
) -> None:
    box = Box(x0 * width, y0 * height, x1 * width, y1 * height)
    for found in parse_boxes(encode_box(box, width, height)):
        for mine, given_edge in zip(found.box, (x0, y0, x1, y1), strict=True):
            assert abs(mine - given_edge) <= 0.5 / 1023 + 1e-9
