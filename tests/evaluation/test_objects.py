from __future__ import annotations

import numpy as np
import pytest

from paliglass.evaluation.objects import (
    Matches,
    intersection_over_union,
    mask_iou,
    mask_overlaps,
    match_boxes,
    match_objects,
)
from paliglass.tasks.boxes import Box

LEFT = "<loc0000><loc0000><loc0512><loc0512> dog"
RIGHT = "<loc0000><loc0512><loc0512><loc1023> dog"
SINGULAR = {"dogs": "dog", "buses": "bus"}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),
    ],
)
def test_intersection_over_union(
    a: tuple[float, ...], b: tuple[float, ...], expected: float
) -> None:
    assert intersection_over_union(Box(*a), Box(*b)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (LEFT, LEFT, Matches(1, 1, 1)),
        (RIGHT, LEFT, Matches(0, 1, 1)),
        (f"{LEFT} ; {RIGHT}", f"{RIGHT} ; {LEFT}", Matches(2, 2, 2)),
        (f"{LEFT} ; {LEFT}", LEFT, Matches(1, 2, 1)),  # a second claim on one thing is wrong
        (LEFT.replace("dog", "cat"), LEFT, Matches(0, 1, 1)),
        (LEFT, "", Matches(0, 1, 0)),
        ("", LEFT, Matches(0, 0, 1)),
        ("", "", Matches(0, 0, 0)),
    ],
)
def test_boxes_count_with_their_label_and_once(answer: str, truth: str, expected: Matches) -> None:
    assert match_boxes(answer, truth) == expected


def test_the_best_pair_is_matched_first() -> None:
    # The first claim fits both dogs well enough, but the second fits none but the first dog.
    near = "<loc0000><loc0000><loc0512><loc0400> dog"
    truth = f"{LEFT} ; <loc0000><loc0000><loc0512><loc0300> dog"
    assert match_boxes(f"{near} ; {LEFT}", truth) == Matches(2, 2, 2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("two dogs and a bus", Matches(3, 3, 3)),
        ("a bus and two dogs", Matches(3, 3, 3)),
        ("a dog, a cat and a bus", Matches(2, 3, 3)),
        ("", Matches(0, 0, 3)),
    ],
)
def test_captions_are_compared_as_counted_things(answer: str, expected: Matches) -> None:
    assert match_objects(answer, "two dogs and a bus", SINGULAR) == expected


def test_f1_by_hand() -> None:
    assert (Matches(1, 2, 1) + Matches(1, 1, 3)).f1 == pytest.approx(2 * 2 / 7)
    assert Matches().f1 == 1.0


def square(x: int, side: int) -> np.ndarray:
    mask = np.zeros((8, 8), np.bool_)
    mask[:side, x : x + side] = True
    return mask


def test_masks_are_paired_by_label_the_best_first() -> None:
    real = [("dog", square(0, 4)), ("dog", square(4, 4)), ("cat", square(0, 2))]
    mine = [
        ("dog", square(3, 4)),
        ("dog", square(4, 4)),
        ("cat", square(6, 2)),
        ("cow", real[0][1]),
    ]
    # The second claim takes the second dog whole; the first one shares a column with the other.
    assert mask_overlaps(mine, real) == [4 / 28, 1.0, 0.0]
    assert mask_overlaps([], real) == [0.0] * 3
    assert mask_overlaps(mine, []) == []


def test_masks_that_are_empty_share_nothing() -> None:
    nothing = np.zeros((8, 8), np.bool_)
    assert mask_iou(nothing, nothing) == 0
    assert mask_overlaps([("dog", nothing)], [("dog", nothing)]) == [0.0]
