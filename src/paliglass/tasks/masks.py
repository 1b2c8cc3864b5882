"""Between a picture's mask and the codec's 64×64 square: crop what is encoded, paste it back.

Both are one bilinear resize written as two small matrices, `rows @ mask @ columns.T`. As in
Pillow, the triangle filter widens when it shrinks (antialias), so that thin parts do not vanish.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paliglass.modeling_mask_codec import MASK_SIDE

__all__ = ["crop_mask", "paste_mask"]

Box = tuple[float, float, float, float]


def crop_mask(mask: NDArray[np.bool_], box: Box) -> NDArray[np.float32]:
    """The part of a mask inside a box, resampled: what `MaskCodec.encode` is given.

    Args:
        mask: H × W, bool.
        box: x0, y0, x1, y1 in pixels; may be fractional; what lies outside the picture is empty.

    Returns:
        64 × 64 in [0, 1].
    """
    x0, y0, x1, y1 = box
    rows, top, bottom = _reading(y0, y1, mask.shape[0])
    columns, left, right = _reading(x0, x1, mask.shape[1])
    return rows @ mask[top:bottom, left:right].astype(np.float32) @ columns.T


def paste_mask(
    mask64: NDArray[np.floating[Any]], box: Box, height: int, width: int
) -> NDArray[np.bool_]:
    """A decoded mask, put in its box in a picture: the inverse of `crop_mask`.

    Args:
        mask64: 64 × 64, as `MaskCodec.decode` gives it: inside where above 0.
        box: x0, y0, x1, y1 in pixels; may be fractional, and partly outside the picture.
        height, width: of the picture.

    Returns:
        H × W, bool; true only at pixels whose centre lies in the box.
    """
    x0, y0, x1, y1 = box
    rows, top, bottom = _writing(y0, y1, height)
    columns, left, right = _writing(x0, x1, width)
    pasted = np.zeros((height, width), np.bool_)
    pasted[top:bottom, left:right] = rows @ mask64.astype(np.float32) @ columns.T > 0
    return pasted


def _reading(start: float, end: float, size: int) -> tuple[NDArray[np.float32], int, int]:
    """64 evenly spaced places in [start, end] of `size` pixels, each a weighing of the pixels.

    Returns the weights (64 × pixels) and the range of pixels that they are for: those that the
    box touches, for what lies outside it must not bleed in.
    """
    first, last = (min(max(edge, 0), size) for edge in (math.floor(start), math.ceil(end)))
    scale = (end - start) / MASK_SIDE
    places = start + (np.arange(MASK_SIDE) + 0.5) * scale
    weights = _triangle(places, np.arange(first, last) + 0.5, max(scale, 1.0))
    weights[(places < 0) | (places > size)] = 0
    return weights, first, last


def _writing(start: float, end: float, size: int) -> tuple[NDArray[np.float32], int, int]:
    """The pixels whose centre lies in [start, end), each a weighing of the 64 mask places."""
    first, last = (min(max(math.ceil(edge - 0.5), 0), size) for edge in (start, end))
    if last <= first:
        return np.zeros((0, MASK_SIDE), np.float32), 0, 0
    scale = MASK_SIDE / (end - start)
    places = (np.arange(first, last) + 0.5 - start) * scale
    weights = _triangle(places, np.arange(MASK_SIDE) + 0.5, max(scale, 1.0))
    return weights, first, last


def _triangle(
    places: NDArray[np.floating[Any]], centres: NDArray[np.floating[Any]], reach: float
) -> NDArray[np.float32]:
    """Weights of `centres` at `places`: falling evenly to 0 at `reach`, each row summing to 1."""
    weights = np.maximum(1 - np.abs(places[:, None] - centres) / reach, 0)
    return (weights / np.maximum(weights.sum(1, keepdims=True), 1e-9)).astype(np.float32)
