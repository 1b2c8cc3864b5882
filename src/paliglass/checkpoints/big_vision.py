"""The original's own files: big_vision .npz → our model.

big_vision (JAX) stores each layer's weight stacked on axis 0 and multiplies from the right, so
every matrix is transposed on the way. bfloat16, which numpy does not know, comes as 2-byte void.
"""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from paliglass.checkpoints.adapters import with_adapter
from paliglass.checkpoints.assembly import Accelerate, assemble, parse_device, parse_dtype
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.memory import require_memory
from paliglass.config import GemmaConfig, PaliGemmaConfig, SigLipConfig
from paliglass.errors import CheckpointError, ConfigError
from paliglass.files import reason, require_readable
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.tensors import require_finite

__all__ = ["infer_config", "load_big_vision", "read_big_vision_config"]

ENCODER = "img/Transformer/encoderblock/"
ATTENTION = ENCODER + "MultiHeadDotProductAttention_0/"
LAYERS = "llm/layers/"

MAX_LAYERS = 1000  # the largest published has 46


def load_big_vision(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
    accelerate: Accelerate | None = None,
    quantize: str | None = None,
    **overrides: Any,
) -> PaliGemmaForConditionalGeneration:
    """The model of a big_vision PaliGemma .npz, with or without the `params/` prefix.

    Dimensions and heads are read off the arrays' shapes. What shapes do not tell is as published,
    or as `overrides` say, by their names in `GemmaConfig`, `SigLipConfig` and `PaliGemmaConfig`:
    attn_logit_softcapping, final_logit_softcapping (0 or None: none), query_pre_attn_scalar,
    rope_theta, image_token_index … adapter, accelerate, quantize: as in `load_model`.

    Raises CheckpointError: not such a file, arrays missing or left over. Pickled arrays are never
    opened.
    """
    target, torch_dtype = parse_device(device), parse_dtype(dtype)
    with _Arrays(Path(path)) as arrays:
        config = infer_config(arrays.shapes, str(path), **overrides)
        require_memory(str(path), arrays.sizes, torch_dtype, target, quantize)
        tensors = _convert(arrays, config)
        if adapter is not None:
            tensors = with_adapter(tensors, locate(adapter, kind="adapter"), torch_dtype)
        return assemble(config, tensors, str(path), torch_dtype, target, accelerate, quantize)


def read_big_vision_config(path: str | Path) -> PaliGemmaConfig:
    """The configuration alone, from the shapes of the arrays; no array is read."""
    with _Arrays(Path(path)) as arrays:
        return infer_config(arrays.shapes, str(path))


class _Arrays:
    """Reads one array at a time, as a tensor, and remembers which have been asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        require_readable(path)
        try:
            with zipfile.ZipFile(path):  # of a broken archive np.load would leave the file open
                self._file = np.load(path, allow_pickle=False)
        except Exception as error:  # zipfile and numpy raise a dozen kinds on damaged files
            raise CheckpointError(f"{path}: is not a big_vision .npz ({reason(error)})") from None
        try:
            headers = {_strip(key): self._header(key) for key in self._file.files}
        except Exception as error:
            if hasattr(self._file, "close"):
                self._file.close()
            raise CheckpointError(f"{path}: is not a big_vision .npz ({reason(error)})") from None
        self.shapes = {name: shape for name, (shape, _) in headers.items()}
        self.sizes = [(math.prod(shape), size) for shape, size in headers.values()]
        self._keys = {_strip(key): key for key in self._file.files}
        self.unread = set(self._keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _header(self, key: str) -> tuple[tuple[int, ...], int]:
        """An array's shape and bytes per number from its header, without its data.

        Raises ValueError where the file has not the bytes that the shape claims.
        """
        entry = self._file.zip.getinfo(key + ".npy")
        with self._file.zip.open(entry) as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(member)
            if member.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
                raise ValueError(f"{key} is not as large as its shape {shape} says")
            return shape, dtype.itemsize

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._keys:
            raise CheckpointError(f"{self.path}: lacks {name}")
        self.unread.discard(name)
        try:
            array = self._file[self._keys[name]]
            if array.dtype.kind == "V" and array.dtype.itemsize == 2:
                tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(array)
        except Exception as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({reason(error)})") from None
        require_finite(tensor, f"{self.path}: {name}")
        return tensor


def _strip(key: str) -> str:
    return key.removeprefix("params/")


def infer_config(
    shapes: Mapping[str, tuple[int, ...]], source: str, **overrides: Any
) -> PaliGemmaConfig:
    """A configuration from the arrays' shapes, the published values and `overrides`."""
    try:
        patch, _, channels, vision_width = shapes["img/embedding/kernel"]
        vision_layers, _, vision_heads, _ = shapes[ATTENTION + "query/kernel"]
        patches = shapes["img/pos_embedding"][1]
        vocab, width = shapes["llm/embedder/input_embedding"]
        layers, heads, head_dim, _ = shapes[LAYERS + "attn/attn_vec_einsum/w"]
        kv = shapes.get(LAYERS + "attn/kv_einsum/w")
        if max(layers, vision_layers) > MAX_LAYERS:  # before a million of them are built
            raise CheckpointError(f"{source}: claims to have {max(layers, vision_layers)} layers")
        vision = SigLipConfig(
            hidden_size=vision_width,
            intermediate_size=shapes[ENCODER + "MlpBlock_0/Dense_0/kernel"][-1],
            num_hidden_layers=vision_layers,
            num_attention_heads=vision_heads,
            num_channels=channels,
            image_size=math.isqrt(patches) * patch,
            patch_size=patch,
        )
        text = GemmaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=shapes[LAYERS + "mlp/linear"][1],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv[2] if kv else heads,
            head_dim=head_dim,
        )
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{source}: is not a PaliGemma .npz, it lacks {error}") from None
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{source}: is not a PaliGemma .npz, an array has another shape ({error})"
        ) from None
    if LAYERS + "post_ffw_norm/scale" in shapes:
        published = GemmaConfig.gemma2_2b()
        text = dataclasses.replace(
            text,
            model_type="gemma2",
            # The 27B decoder alone scales queries by width / heads.
            query_pre_attn_scalar=144 if width == 4608 else head_dim,
            attn_logit_softcapping=published.attn_logit_softcapping,
            final_logit_softcapping=published.final_logit_softcapping,
        )
    return PaliGemmaConfig(vision, text).replace(**overrides)


def _convert(arrays: _Arrays, config: PaliGemmaConfig) -> Iterator[tuple[str, str, Tensor]]:
    """(our name, the file's name, tensor) for every weight."""
    tower = "vision_tower.vision_model."
    decoder = "language_model.model."

    def one(name: str, key: str) -> Iterator[tuple[str, str, Tensor]]:
        yield name, key, arrays[key]

    def stacked(
        prefix: str, name: str, key: str, array: Tensor
    ) -> Iterator[tuple[str, str, Tensor]]:
        for layer, weight in enumerate(array):
            # A copy of its own: a slice would keep the whole stack in memory.
            yield f"{prefix}layers.{layer}.{name}", key, weight.clone().contiguous()

    kernel = arrays["img/embedding/kernel"]  # height width channel D
    yield (
        tower + "embeddings.patch_embedding.weight",
        "img/embedding/kernel",
        kernel.permute(3, 2, 0, 1).contiguous(),
    )
    yield from one(tower + "embeddings.patch_embedding.bias", "img/embedding/bias")
    yield (
        tower + "embeddings.position_embedding.weight",
        "img/pos_embedding",
        arrays["img/pos_embedding"][0].clone(),
    )
    for ours, theirs in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
        for leaf, their_leaf in (("weight", "scale"), ("bias", "bias")):
            key = f"{ENCODER}{theirs}/{their_leaf}"
            yield from stacked(tower + "encoder.", f"{ours}.{leaf}", key, arrays[key])
    for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        key = f"{ENCODER}MlpBlock_0/{theirs}/"
        kernels = arrays[key + "kernel"].transpose(1, 2)  # layer in out -> layer out in
        yield from stacked(tower + "encoder.", f"mlp.{ours}.weight", key + "kernel", kernels)
        yield from stacked(
            tower + "encoder.", f"mlp.{ours}.bias", key + "bias", arrays[key + "bias"]
        )
    for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        key = f"{ATTENTION}{theirs}/"
        kernels = arrays[key + "kernel"].flatten(2).transpose(1, 2)  # layer D (H hd) -> transposed
        biases = arrays[key + "bias"].flatten(1)
        yield from stacked(tower + "encoder.", f"self_attn.{ours}.weight", key + "kernel", kernels)
        yield from stacked(tower + "encoder.", f"self_attn.{ours}.bias", key + "bias", biases)
    kernels = arrays[ATTENTION + "out/kernel"].flatten(1, 2).transpose(1, 2)
    biases = arrays[ATTENTION + "out/bias"]
    key = ATTENTION + "out/"
    yield from stacked(tower + "encoder.", "self_attn.out_proj.weight", key + "kernel", kernels)
    yield from stacked(tower + "encoder.", "self_attn.out_proj.bias", key + "bias", biases)
    yield from one(tower + "post_layernorm.weight", "img/Transformer/encoder_norm/scale")
    yield from one(tower + "post_layernorm.bias", "img/Transformer/encoder_norm/bias")
    head = arrays["img/head/kernel"].T.contiguous()
    yield "multi_modal_projector.linear.weight", "img/head/kernel", head
    yield from one("multi_modal_projector.linear.bias", "img/head/bias")

    yield from one(decoder + "embed_tokens.weight", "llm/embedder/input_embedding")
    if LAYERS + "attn/qkv_einsum/w" in arrays.shapes:  # as many key heads as query heads
        key = LAYERS + "attn/qkv_einsum/w"
        projections = dict(zip("qkv", arrays[key].unbind(1), strict=True))
    else:
        key = LAYERS + "attn/kv_einsum/w"
        keys, values = arrays[key].unbind(1)
        projections = {"q": arrays[LAYERS + "attn/q_einsum/w"], "k": keys, "v": values}
    for letter, weight in projections.items():  # layer heads D hd -> layer (heads hd) D
        flat = weight.transpose(2, 3).flatten(1, 2)
        yield from stacked(decoder, f"self_attn.{letter}_proj.weight", key, flat)
    key = LAYERS + "attn/attn_vec_einsum/w"
    output = arrays[key].flatten(1, 2).transpose(1, 2)  # layer (H hd) D -> layer D (H hd)
    yield from stacked(decoder, "self_attn.o_proj.weight", key, output)
    key = LAYERS + "mlp/gating_einsum"
    gate, up = arrays[key].transpose(2, 3).unbind(1)  # layer 2 D M -> two of layer M D
    yield from stacked(decoder, "mlp.gate_proj.weight", key, gate)
    yield from stacked(decoder, "mlp.up_proj.weight", key, up)
    key = LAYERS + "mlp/linear"
    yield from stacked(decoder, "mlp.down_proj.weight", key, arrays[key].transpose(1, 2))
    norms = {"pre_attention_norm": "input_layernorm", "pre_ffw_norm": "post_attention_layernorm"}
    if config.text_config.has_post_norms:
        norms |= {
            "pre_ffw_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    for theirs, ours in norms.items():
        key = f"{LAYERS}{theirs}/scale"
        yield from stacked(decoder, f"{ours}.weight", key, arrays[key])
    yield from one(decoder + "norm.weight", "llm/final_norm/scale")
    for key in sorted(arrays.unread):  # `assemble` will refuse these by name
        yield key, key, torch.empty(0)
