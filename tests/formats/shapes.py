"""Masks for tests."""

from __future__ import annotations

import numpy as np
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def disc(height: int = 60, width: int = 80, hole: bool = True) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(x - width / 2, y - height / 2)
    return (radius < height / 2.5) & ~(hole & (radius < height / 8))
