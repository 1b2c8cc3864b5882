"""Mask codecs in files: our own safetensors, and the official .npz (`vae-oid.npz`)."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paliglass.errors import CheckpointError, ConfigError
from paliglass.files import reason, require_readable
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tensors import open_tensors, read_tensor, require_finite, save_file

__all__ = ["CODEC", "find_mask_codec", "load_mask_codec", "save_mask_codec"]

CODEC = "mask_codec.safetensors"
_OFFICIAL_CODEBOOK = "_vq_vae._embedding"


def find_mask_codec(folder: Path, given: str | Path | None = None) -> MaskCodec | None:
    """The codec of a given file; else of a model's folder, if it has one.

    Raises CheckpointError as `load_mask_codec` does, and for another number of codes than PaliGemma
    has tokens.
    """
    path = folder / CODEC if given is None else Path(given)
    if given is None and not path.exists():
        return None
    codec = load_mask_codec(path)
    if codec.config.num_codes != 128:
        raise CheckpointError(
            f"{path}: has {codec.config.num_codes} codes; PaliGemma has 128 <seg> tokens"
        )
    return codec


def load_mask_codec(path: str | Path) -> MaskCodec:
    """The codec of an .npz as the official `vae-oid.npz`, else of what `save_mask_codec` wrote.

    In float32. Pickled arrays are never opened.

    Raises CheckpointError: not such a file, keys missing, left over or wrongly shaped.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: is missing")
    require_readable(path)
    sizes, tensors = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    try:
        config = MaskCodecConfig(*sizes)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.device("meta"):  # no memory before the shapes are known to be right
        codec = MaskCodec(config)
    expected = codec.state_dict()
    for word, keys in (
        ("lacks", expected.keys() - tensors),
        ("has surplus", tensors.keys() - expected),
    ):
        if keys:
            raise CheckpointError(f"{path}: {word} {', '.join(sorted(keys))}")
    for key, tensor in tensors.items():
        require_finite(tensor, f"{path}: {key}")
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{path}: {key} is {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
            )
    codec.load_state_dict(tensors, assign=True)
    return codec.eval().requires_grad_(False)


def save_mask_codec(
    codec: MaskCodec,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file in one step: the sizes go into its metadata, with `metadata`.

    `dtype` is what weights are stored in; None keeps theirs.
    """
    state = {key: value.to(dtype).contiguous() for key, value in codec.state_dict().items()}
    about = {"config": json.dumps(dataclasses.asdict(codec.config)), **(metadata or {})}
    save_file(state, Path(path), about)


def _read_npz(path: Path) -> tuple[tuple[int, int, int], dict[str, Tensor]]:
    """Sizes, which are read off the shapes, and tensors."""
    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                name = "codebook" if key == _OFFICIAL_CODEBOOK else key
                tensors[name] = torch.from_numpy(arrays[key]).float()
    except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged files
        raise CheckpointError(
            f"{path}: is not the .npz file of a mask codec ({reason(error)}); the official one "
            "is vae-oid.npz"
        ) from None
    for key in ("codebook", "decoder.0.weight"):
        if key not in tensors or tensors[key].ndim < 2:
            name = _OFFICIAL_CODEBOOK if key == "codebook" else key
            raise CheckpointError(f"{path}: is not a mask codec, it lacks {name}")
    codes, dim = tensors["codebook"].shape
    return (len(tensors["decoder.0.weight"]), dim, codes), tensors


def _read_safetensors(path: Path) -> tuple[tuple[int, int, int], dict[str, Tensor]]:
    """Sizes, which stand in the metadata, and tensors."""
    try:
        with open_tensors(path) as file:
            config = json.loads((file.metadata() or {})["config"])
            sizes = config["width"], config["embedding_dim"], config["num_codes"]
            return sizes, {key: read_tensor(file, key, path).float() for key in file.keys()}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its metadata is not a mask codec's ({reason(error)})"
        ) from None
