"""COCO's run lengths, beside the code of COCO's own tools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from tests.formats.shapes import disc, masks

from paliglass.formats.rle import decode_rle, encode_rle


@given(masks)
def test_run_lengths_come_back(mask) -> None:
    assert (decode_rle(json.loads(json.dumps(encode_rle(mask)))) == mask).all()


@given(masks)
def test_run_lengths_are_cocos(mask) -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = expected["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    assert encode_rle(mask) == {"size": list(expected["size"]), "counts": text}


def test_run_lengths_of_a_large_mask_are_cocos() -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    mask = disc(1500, 1100)
    counts = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    assert encode_rle(mask)["counts"] == text


@given(masks)
def test_runs_that_are_not_compressed_are_the_same(mask) -> None:
    flat = mask.ravel(order="F").tolist()
    runs, value = [0], False
    for pixel in flat:
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    assert (decode_rle({"size": mask.shape, "counts": runs}) == mask).all()
    assert (decode_rle({"size": mask.shape, "counts": [*runs, 0, 0]}) == mask).all()


@pytest.mark.parametrize("counts", ["", "0", "52", "o", [], [5], [7], [-1, 7], [3, 4]])
def test_wrong_run_lengths_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="do not add up to 2 × 3 pixels"):
        decode_rle({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("counts", ["é", "\x00", " 6", "o" * 100, "~"])
def test_text_that_is_no_run_lengths_is_refused(counts) -> None:
    with pytest.raises(ValueError, match=r"run lengths|ascii"):
        decode_rle({"size": [2, 3], "counts": counts})
