"""Outlines of masks, and polygons filled as COCO's own tools fill them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.formats.shapes import disc, masks

from paliglass.formats import yolo
from paliglass.formats.polygons import fill_polygons, outlines


def flat(polygons: list[list[tuple[int, int]]]) -> list[list[float]]:
    return [[float(value) for point in ring for value in point] for ring in polygons]


def filled(polygons: list[list[tuple[int, int]]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels whose centre lies in one of the polygons: a ray to the left crosses it oddly often."""
    inside = np.zeros(shape, bool)
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    for polygon in polygons:
        odd = np.zeros(shape, bool)
        for (xa, ya), (xb, yb) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if xa == xb:
                crossed = (rows > min(ya, yb)) & (rows < max(ya, yb))
                odd ^= crossed[:, None] & (columns > xa)
            else:
                assert ya == yb
        inside |= odd
    return inside


@given(masks)
def test_outlines_fill_the_mask_again(mask) -> None:
    polygons = outlines(mask)
    assert (filled(polygons, mask.shape) == mask).all()
    for polygon in polygons:
        assert len(polygon) >= 4


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_outlines_of_smooth_masks(height: int, width: int, seed: int) -> None:
    noise = np.random.default_rng(seed).random((3, 3))
    smooth = Image.fromarray(noise.astype(np.float32)).resize((width, height))
    mask = np.asarray(smooth) > 0.5
    assert (filled(outlines(mask), mask.shape) == mask).all()


def test_a_rectangle_has_four_corners_and_a_frame_ten() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    [corners] = outlines(mask)
    assert sorted(corners) == [(1, 1), (1, 4), (5, 1), (5, 4)]
    mask[2, 2:4] = False
    [corners] = outlines(mask)
    assert len(corners) == 4 + 4 + 2  # a seam has two ends, each passed twice


@given(masks)
def test_own_polygons_are_read_back_whole(mask) -> None:
    polygons = outlines(mask)
    assert (fill_polygons(flat(polygons), *mask.shape) == mask).all()
    ring = yolo._one_ring(polygons)  # parts and holes as one, as YOLO's files have them
    assert (fill_polygons(flat([ring] if ring else []), *mask.shape) == mask).all()


def test_yolos_six_digits_are_enough() -> None:
    mask = disc(1500, 1100)
    line = yolo.to_line(0, (0, 0, 1100, 1500), 1100, 1500, mask)
    assert line is not None
    thing = yolo.parse_line(line, "line 1")
    corners = (np.reshape(thing.polygon, (-1, 2)) * (1100, 1500)).ravel().tolist()
    assert (fill_polygons([corners], 1500, 1100) == mask).all()


def test_a_square_is_no_pixel_too_fat() -> None:
    mask = fill_polygons([[10, 10, 20, 10, 20, 20, 10, 20]], 40, 40)
    assert mask.sum() == 100
    assert mask[10:20, 10:20].all()


coordinates = st.one_of(
    st.integers(-10, 60).map(float),
    st.floats(-30, 90, width=32),
    st.sampled_from([0.0, 0.5, 9.9, 10.1, 39.5, 40.0, -0.3]),
)


@given(
    st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8), max_size=3),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_polygons_are_filled_pixel_by_pixel_as_coco_fills_them(polygons, height, width) -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    parts = [[value for point in polygon for value in point] for polygon in polygons]
    expected = np.zeros((height, width), bool)
    if parts:
        expected = coco.decode(coco.frPyObjects(parts, height, width)).astype(bool).any(axis=-1)
    assert (fill_polygons(parts, height, width) == expected).all()


@pytest.mark.parametrize(
    "polygon",
    [[], [1, 1, 2, 2], [1, 1, 2, 2, 3], [1, 1, 2, float("inf"), 3, 3], [0, 0, 1e12, 1, 2, 2]],
)
def test_what_is_no_polygon_is_refused(polygon) -> None:
    with pytest.raises(ValueError, match="a polygon"):
        fill_polygons([polygon], 10, 10)
