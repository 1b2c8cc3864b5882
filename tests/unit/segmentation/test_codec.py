from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paliglass
from paliglass.checkpoints.mask_codec import load_mask_codec, save_mask_codec
from paliglass.errors import CheckpointError, ConfigError
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig

SMALL = MaskCodecConfig(width=16, embedding_dim=8, num_codes=32)


@pytest.fixture
def codec() -> MaskCodec:
    torch.manual_seed(0)
    return MaskCodec(SMALL)


def masks(count: int) -> torch.Tensor:
    return (torch.rand(count, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def official(codec: MaskCodec) -> dict[str, np.ndarray]:
    state = {key: value.numpy() for key, value in codec.state_dict().items()}
    return {("_vq_vae._embedding" if k == "codebook" else k): v for k, v in state.items()}


def test_codes_are_those_of_the_nearest_vectors(codec: MaskCodec) -> None:
    vectors = torch.randn(3, 4, 4, SMALL.embedding_dim)
    distances = torch.cdist(vectors.flatten(0, 2), codec.codebook)
    assert torch.equal(codec.nearest(vectors).flatten(), distances.argmin(1))
    assert torch.equal(codec.nearest(codec.codebook), torch.arange(SMALL.num_codes))


def test_a_batch_equals_single_masks_and_may_be_empty(codec: MaskCodec) -> None:
    codes = codec.encode(masks(5))
    assert codes.shape == (5, 16)
    assert torch.equal(torch.cat([codec.encode(mask[None]) for mask in masks(5)]), codes)
    decoded = codec.decode(codes)
    assert decoded.shape == (5, 64, 64)
    torch.testing.assert_close(codec.decode(codes[3:4]), decoded[3:4])
    assert codec.decode(codec.encode(masks(0))).shape == (0, 64, 64)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_is_saved_comes_back(
    codec: MaskCodec, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    path = tmp_path / "codec.safetensors"
    save_mask_codec(codec, path, dtype=dtype, metadata={"round_trip_iou": "0.5"})
    again = load_mask_codec(path)
    assert again.config == SMALL
    expected = codec if dtype is None else codec.half().float()
    for key, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert load_file(path)["codebook"].dtype == (dtype or torch.float32)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["round_trip_iou"] == "0.5"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_official_keys_are_read_with_their_sizes(codec: MaskCodec, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "vae.npz", **official(codec))
    again = load_mask_codec(tmp_path / "vae.npz")
    assert again.config == SMALL
    assert torch.equal(again.encode(masks(4)), codec.encode(masks(4)))


def lacking(state: dict[str, np.ndarray]) -> None:
    del state["encoder.8.net.2.bias"]


def surplus(state: dict[str, np.ndarray]) -> None:
    state["step"] = np.zeros(1)


def misshapen(state: dict[str, np.ndarray]) -> None:
    state["decoder.6.weight"] = state["decoder.6.weight"].swapaxes(0, 1)


def without_codebook(state: dict[str, np.ndarray]) -> None:
    del state["_vq_vae._embedding"]


def odd_width(state: dict[str, np.ndarray]) -> None:
    state["decoder.0.weight"] = state["decoder.0.weight"][:9]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lacking, r"vae\.npz: lacks encoder\.8\.net\.2\.bias"),
        (surplus, r"vae\.npz: has surplus step"),
        (misshapen, r"decoder\.6\.weight is \(8, 16, 4, 4\), expected \(16, 8, 4, 4\)"),
        (without_codebook, r"lacks _vq_vae\._embedding"),
        (odd_width, r"width is 9; it must be a multiple of 8"),
    ],
)
def test_a_spoilt_official_file_is_refused_by_key(
    codec: MaskCodec, tmp_path: Path, spoil: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    state = official(codec)
    spoil(state)
    np.savez(tmp_path / "vae.npz", **state)
    with pytest.raises(CheckpointError, match=message):
        load_mask_codec(tmp_path / "vae.npz")


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    array = np.empty(1, object)
    array[0] = print
    np.savez(tmp_path / "vae.npz", allow_pickle=True, **{"_vq_vae._embedding": array})
    with pytest.raises(CheckpointError, match=r"is not the \.npz file of a mask codec"):
        load_mask_codec(tmp_path / "vae.npz")


@pytest.mark.parametrize("name", ["file.safetensors", "file.npz"])
@pytest.mark.parametrize("content", [None, b"", b"not a file of weights" * 20])
def test_files_of_another_kind_are_refused(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: is"):
        load_mask_codec(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "metadata is not a mask codec's"),
        ({"config": "{}"}, "metadata is not a mask codec's"),
        ({"config": "[1"}, "metadata is not a mask codec's"),
        ({"width": True}, "width is True"),
        ({"width": 8 * 10**9}, "width is 8000000000"),
        ({"width": 2**13}, r"is \(.*\), expected \(.*\)"),
        ({"num_codes": 0}, "num_codes is 0"),
        ({"num_codes": 31}, r"codebook is \(32, 8\), expected \(31, 8\)"),
    ],
)
def test_bad_metadata_is_refused(
    codec: MaskCodec, tmp_path: Path, metadata: dict[str, object] | None, message: str
) -> None:
    path = tmp_path / "codec.safetensors"
    if metadata is not None and "config" not in metadata:
        sizes = {"width": 16, "embedding_dim": 8, "num_codes": 32}
        metadata = {"config": json.dumps({**sizes, **metadata})}
    save_file(codec.state_dict(), path, metadata)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=message):
        load_mask_codec(path)


def test_a_missing_tensor_is_named(codec: MaskCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    save_mask_codec(codec, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    del state["codebook"]
    save_file(state, path, metadata)
    with pytest.raises(CheckpointError, match=r"codec\.safetensors: lacks codebook"):
        load_mask_codec(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(
    codec: MaskCodec, tmp_path: Path, value: float
) -> None:
    path = tmp_path / "codec.safetensors"
    save_mask_codec(codec, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    state["codebook"][3, 1] = value
    save_file(state, path, metadata)
    with pytest.raises(CheckpointError, match=r"codebook holds"):
        load_mask_codec(path)
    arrays = official(codec)
    arrays["_vq_vae._embedding"] = state["codebook"].numpy()
    np.savez(tmp_path / "vae.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"codebook holds"):
        load_mask_codec(tmp_path / "vae.npz")


@pytest.mark.parametrize("code", [5, 31, 127, -1])
def test_a_code_beyond_the_codebook_is_refused(code: int) -> None:
    small = MaskCodec(MaskCodecConfig(width=8, embedding_dim=2, num_codes=5))
    codes = torch.zeros(2, 16, dtype=torch.long)
    small.decode(codes + 4)
    codes[1, 7] = code
    with pytest.raises(CheckpointError, match="the mask codec has 5 codes"):
        small.decode(codes)


def test_sizes_must_be_possible() -> None:
    with pytest.raises(ConfigError, match="width is 12; it must be a multiple of 8"):
        MaskCodecConfig(width=12)


def test_the_shipped_codec_draws_discs() -> None:
    path = Path(paliglass.__file__).parent / "mini" / "mask_codec.safetensors"
    codec = load_mask_codec(path)
    x, y = torch.arange(64) - 31.5, torch.arange(64)[:, None] - 31.5
    discs = torch.stack([(x**2 + (y / scale) ** 2) < 32**2 for scale in (1.0, 0.7, 0.4)])
    back = codec.decode(codec.encode(discs.float())) > 0
    ious = (discs & back).sum((1, 2)) / (discs | back).sum((1, 2))
    assert ious.min() > 0.9
    with safe_open(path, framework="pt") as file:
        assert float(file.metadata()["round_trip_iou"]) > 0.93
