"""The mask codec against the original's numbers (google-research/big_vision, JAX, float32)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from paliglass.checkpoints.mask_codec import load_mask_codec
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.masks import crop_mask

FIXTURES = Path(__file__).parents[1] / "fixtures" / "big_vision"
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    return load_mask_codec(FIXTURES / "vae_ckpt.npz")


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    keys = ("dec_indices", "dec_masks", "enc_masks", "enc_z", "enc_indices", "recon_of_enc")
    with np.load(FIXTURES / "vae_io.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in keys}


def test_the_published_sizes_are_the_defaults(codec: MaskCodec) -> None:
    assert codec.config == MaskCodecConfig()


def test_decoded_masks(codec: MaskCodec, numbers: dict[str, Tensor]) -> None:
    masks = codec.decode(numbers["dec_indices"].long())
    torch.testing.assert_close(masks, numbers["dec_masks"][..., 0], atol=TOLERANCE, rtol=0)


def test_encoded_masks(codec: MaskCodec, numbers: dict[str, Tensor]) -> None:
    masks = numbers["enc_masks"][..., 0]
    torch.testing.assert_close(codec.embed(masks), numbers["enc_z"], atol=TOLERANCE, rtol=0)
    codes = codec.encode(masks)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, numbers["enc_indices"].long())
    again = codec.decode(codes)
    torch.testing.assert_close(again, numbers["recon_of_enc"][..., 0], atol=TOLERANCE, rtol=0)


def test_from_a_pictures_mask_to_its_tokens(codec: MaskCodec) -> None:
    with np.load(FIXTURES / "vae_io.npz", allow_pickle=False) as arrays:
        mask, (y0, x0, y1, x1) = arrays["m2s_mask"][..., 0] > 0, arrays["m2s_bbox"]
        suffix, mask64 = str(arrays["m2s_suffix"]), arrays["m2s_mask64"][0, ..., 0]
    height, width = mask.shape
    cropped = crop_mask(
        mask, (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
    )
    np.testing.assert_allclose(cropped, mask64, atol=TOLERANCE)
    codes = codec.encode(torch.from_numpy(cropped)[None])
    assert codes[0].tolist() == [int(code) for code in re.findall(r"<seg(\d{3})>", suffix)]
