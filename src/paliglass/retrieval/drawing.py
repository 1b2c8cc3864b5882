"""Where on a page the words of a query are: a heat map over the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["highlight", "patch_heat"]

_ALPHA = 0.6
"""Of the hottest patch: what is written there can still be read."""
_COLOUR = (255, 140, 0)


def patch_heat(words: Tensor, page: Tensor, patches_per_side: int) -> Tensor:
    """How much each patch of a page has to do with a query's words, 0 … 1.

    A patch counts by the word that it is nearest to. The mean patch and all below it are 0, the
    best is 1.

    Args:
        words: W × D, the vectors of the query's own tokens (`ColPaliProcessor.words`).
        page: T × D; the first patches_per_side² are the patches', row by row.
        patches_per_side: S.

    Returns S × S.
    """
    patches = page[: patches_per_side**2]
    nearest = (patches @ words.T).amax(-1)
    heat = (nearest - nearest.mean()).clamp(min=0)
    return (heat / heat.max().clamp(min=1e-6)).view(patches_per_side, patches_per_side)


def highlight(picture: Image.Image, heat: Tensor) -> Image.Image:
    """A copy of an RGB picture with its patches tinted, the more the hotter: S × S, 0 … 1."""
    alpha = (heat.float() * _ALPHA * 255).round().byte().cpu().numpy()
    mask = Image.fromarray(np.ascontiguousarray(alpha)).resize(
        picture.size, Image.Resampling.BILINEAR
    )
    return Image.composite(Image.new("RGB", picture.size, _COLOUR), picture, mask)
