"""The way from a picture to its answer stays short."""

from __future__ import annotations

import sys

import numpy as np
from workshop.call_path import follow

import paliglass


def test_a_caption_enters_few_files_functions_and_frames() -> None:
    """As many as there are now: who adds one says why, here.

    108 → 116: several processes draw alike, one row's overflow is its own error, and the
    processor knows what may be said.
    """
    model = paliglass.load("mini", device="cpu", fast=False)
    picture = np.zeros((64, 96, 3), np.uint8)
    path = follow(lambda: model.caption(picture))
    assert len(path.functions) <= 20
    assert path.num_functions <= 116
    assert len(path.frames) <= 13
    assert path.frames[0] == "model.py: PaliGemma.caption"
    assert path.frames[-1] == "layers/attention.py: Attention.attend"
    assert sys.getprofile() is None


def test_what_is_no_part_of_the_package_does_not_count() -> None:
    path = follow(lambda: np.zeros(3).mean())
    assert (path.num_functions, path.frames) == (0, [])
