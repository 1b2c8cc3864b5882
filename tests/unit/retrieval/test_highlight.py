"""Heat maps: hot where the words are, and the picture stays visible below."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from paliglass.retrieval.drawing import highlight, patch_heat

SIDE, D = 4, 16


def test_the_patch_that_is_the_word_is_the_hottest() -> None:
    generator = torch.Generator().manual_seed(0)
    page = F.normalize(torch.randn(SIDE**2 + 5, D, generator=generator), dim=-1)
    words = page[[6, 9]]
    heat = patch_heat(words, page, SIDE)
    assert heat.shape == (SIDE, SIDE)
    assert heat.flatten().topk(2).indices.sort().values.tolist() == [6, 9]
    assert heat.max() == 1
    assert heat.min() == 0


def test_tokens_after_the_patches_have_no_heat() -> None:
    page = torch.eye(SIDE**2 + 1)
    assert patch_heat(page[-1:], page, SIDE).max() == 0


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (3, 500)])
@pytest.mark.parametrize("colour", ["white", "black", "navy"])
def test_what_is_below_stays_visible(size: tuple[int, int], colour: str) -> None:
    """At most .6 of the tint: two fifths of every difference are left."""
    picture = Image.new("RGB", size, colour)
    drawn = highlight(picture, torch.ones(SIDE, SIDE))
    assert drawn.size == size
    tint = np.array([255, 140, 0])
    expected = 0.6 * tint + 0.4 * np.asarray(picture)[0, 0]
    assert np.abs(np.asarray(drawn)[-1, -1] - expected).max() <= 1
    assert np.asarray(highlight(picture, torch.zeros(SIDE, SIDE))).tolist() == (
        np.asarray(picture).tolist()
    )


def test_heat_lies_where_the_patch_lies() -> None:
    heat = torch.zeros(SIDE, SIDE)
    heat[1, 3] = 1
    drawn = np.asarray(highlight(Image.new("RGB", (400, 200), "white"), heat)).astype(int)
    y, x = np.unravel_index(drawn[..., 2].argmin(), drawn.shape[:2])
    assert (y // 50, x // 100) == (1, 3)
    assert (drawn[150:] == 255).all()
