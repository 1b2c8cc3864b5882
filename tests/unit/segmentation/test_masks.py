from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from paliglass.tasks.masks import crop_mask, paste_mask

Box = tuple[float, float, float, float]


def ellipse(height: int, width: int, box: Box) -> NDArray[np.bool_]:
    """The pixels whose centre lies in the ellipse that touches the box's edges."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 < 0.25


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def there_and_back(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    return paste_mask(2 * crop_mask(mask, box) - 1, box, *mask.shape)


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int, least: float) -> Box:
    x0 = draw(st.floats(0, width - least))
    y0 = draw(st.floats(0, height - least))
    x1 = draw(st.floats(x0 + least, width))
    y1 = draw(st.floats(y0 + least, height))
    return x0, y0, x1, y1


@given(boxes(90, 130, 12))
def test_a_mask_survives_the_way_there_and_back(box: Box) -> None:
    mask = ellipse(90, 130, box)
    assert iou(there_and_back(mask, box), mask) > 0.9


@given(st.data())
def test_an_enlarged_mask_comes_back_whole(data: st.DataObject) -> None:
    """Up to 64 pixels a side nothing is averaged away: a whole-pixel box gives back every pixel."""
    height, width = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 64))
    seed = data.draw(st.integers(0, 2**32 - 1))
    full = np.zeros((70, 80), np.bool_)
    full[3 : 3 + height, 5 : 5 + width] = True
    assert np.array_equal(there_and_back(full, (5, 3, 5 + width, 3 + height)), full)
    coarse = np.random.default_rng(seed).random((8, 8)) > 0.5
    mask = np.kron(coarse, np.ones((8, 8), bool))  # 64 × 64
    assert np.array_equal(there_and_back(mask, (0, 0, 64, 64)), mask)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_no_box_in_the_picture_raises(height: int, width: int, data: st.DataObject) -> None:
    box = data.draw(boxes(height, width, 0))
    mask = np.ones((height, width), np.bool_)
    cropped = crop_mask(mask, box)
    assert cropped.shape == (64, 64)
    assert cropped.dtype == np.float32
    assert 0 <= cropped.min() <= cropped.max() <= 1 + 1e-5
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:height, :width] + 0.5
    inside = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    assert np.array_equal(paste_mask(np.ones((64, 64)), box, height, width), inside)


@given(st.tuples(*[st.floats(-300, 300)] * 4))
def test_boxes_beyond_the_picture_are_cut(edges: Box) -> None:
    box = (
        min(edges[0], edges[2]),
        min(edges[1], edges[3]),
        max(edges[0], edges[2]),
        max(edges[1], edges[3]),
    )
    mask = np.ones((40, 60), np.bool_)
    cropped = crop_mask(mask, box)
    assert np.isfinite(cropped).all()
    pasted = paste_mask(2 * cropped - 1, box, 40, 60)
    y, x = np.mgrid[:40, :60] + 0.5
    assert not pasted[(x < box[0]) | (x > box[2]) | (y < box[1]) | (y > box[3])].any()


def test_what_lies_outside_the_picture_is_empty() -> None:
    cropped = crop_mask(np.ones((32, 32), np.bool_), (-32, 0, 32, 32))
    assert not cropped[:, :32].any()
    np.testing.assert_allclose(cropped[:, 32:], 1, atol=1e-6)


@pytest.mark.parametrize("box", [(7, 5, 71, 29), (10, 4, 210, 160), (3, 2, 4, 3)])
def test_cropping_is_pillows_bilinear_resize(box: tuple[int, int, int, int]) -> None:
    mask = np.random.default_rng(0).random((170, 220)) > 0.5
    picture = Image.fromarray(mask.astype(np.float32)).crop(box)
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(crop_mask(mask, box), expected, atol=1e-5)


@pytest.mark.parametrize("box", [(7, 5, 71, 29), (10, 4, 210, 160), (3, 2, 4, 3)])
def test_pasting_is_pillows_bilinear_resize(box: tuple[int, int, int, int]) -> None:
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    x0, y0, x1, y1 = box
    resized = Image.fromarray(values).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    expected = np.zeros((170, 220), np.bool_)
    expected[y0:y1, x0:x1] = np.asarray(resized) > 0
    assert np.array_equal(paste_mask(values, box, 170, 220), expected)
