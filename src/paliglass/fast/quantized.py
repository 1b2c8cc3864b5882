"""A model whose matrices are int8: how it is filled, and what its folder says of itself.

A folder in int8 is laid out as any other, but each matrix is int8 beside the float32 `scale` of its
rows, the output layer's too, and config.json says so. transformers cannot read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.errors import ConfigError, PaliglassError
from paliglass.fast.int8 import Int8Embedding, Int8Head, Int8Linear, quantise_rows
from paliglass.fast.int8_blocks import Int8GeGLU, Int8GeluMLP, Int8LayerNorm, Int8RMSNorm
from paliglass.layers.attention import Attention, ExplicitAttention
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

METHODS = ("int8",)
QUANTIZED = {"weight": torch.int8, "scale": torch.float32}  # an Int8Linear's own buffers
CONFIG_KEY = "quantization_config"
CONFIG = {"quant_method": "paliglass", "bits": 8, "scale": "row"}


def parse_quantize(method: str | None) -> bool:
    """Whether int8 is wanted; None: as the checkpoint is. Raises PaliglassError for other words."""
    if method is not None and method not in METHODS:
        raise PaliglassError(f"quantize {method!r} is unknown: choose {', '.join(METHODS)}")
    return method is not None


def take_config(data: dict[str, Any]) -> bool:
    """Whether config.json's data, from which the answer is removed, are those of an int8 folder.

    Raises ConfigError for another program's quantisation.
    """
    found = data.pop(CONFIG_KEY, None)
    if found not in (None, CONFIG):
        raise ConfigError(
            f"config key {CONFIG_KEY!r} is {found!r}; of quantised checkpoints, only those that "
            "`paliglass convert --quantize int8` writes are read"
        )
    return found is not None


def use_int8(model: PaliGemmaForConditionalGeneration) -> None:
    """Puts an `Int8Linear` in the place of every linear layer, empty as it was; ties the head."""
    decoder = model.language_model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not decoder.lm_head:
                bias = None if child.bias is None else child.bias
                setattr(parent, name, Int8Linear(*_empty(child.weight.shape), bias))
    table = Int8Embedding(*_empty(decoder.model.embed_tokens.weight.shape))
    decoder.model.register_module("embed_tokens", table)
    decoder.register_module("lm_head", Int8Head(table))


def _empty(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.empty(shape, dtype=torch.int8), torch.empty(shape[0])


def speed_up(model: PaliGemmaForConditionalGeneration) -> None:
    """What packed matrices allow besides; nothing where they are not packed.

    They have no gradients, so the rest of the model wants none either: blocks work in place.
    """
    if any(layer.packed is None for layer in model.modules() if isinstance(layer, Int8Linear)):
        return
    model.requires_grad_(False)
    for layer in model.vision_tower.vision_model.encoder.layers:
        _speed_up(layer, Int8GeluMLP, Int8LayerNorm, "layer_norm1", "layer_norm2")
    before_mlp = "post_attention_layernorm"  # Gemma 1's name for it
    if model.config.text_config.has_post_norms:
        before_mlp = "pre_feedforward_layernorm"
    for layer in model.language_model.model.layers:
        _speed_up(layer, Int8GeGLU, Int8RMSNorm, "input_layernorm", before_mlp)
    # glibc gives freed memory back at once, and takes 91 000 new pages for each prompt of 3B, but
    # adapts to the largest block that it has seen freed, up to 32 MiB.
    torch.empty(31 << 20, dtype=torch.uint8)


def _speed_up(
    layer: nn.Module, mlp: type[nn.Module], norm: Callable[[Any], nn.Module], *names: str
) -> None:
    layer.set_submodule("mlp", mlp(**dict(layer.get_submodule("mlp").named_children())))
    for name in names:  # the norms before int8 matrices
        layer.set_submodule(name, norm(layer.get_submodule(name)))
    plain = layer.get_submodule("self_attn.attention")
    assert isinstance(plain, Attention)
    layer.set_submodule("self_attn.attention", ExplicitAttention(plain.scale, plain.softcap))


def settle(model: PaliGemmaForConditionalGeneration, head: Tensor | None) -> bool:
    """What is left to do of a filled model; whether the output layer's own matrix, if any, agrees.

    Of that matrix, in a file beside the embedding's though they are tied, some rows are compared.
    """
    table = model.language_model.model.embed_tokens
    assert isinstance(table, Int8Embedding)
    table.dtype = model.dtype
    if head is None:
        return True
    some = torch.arange(0, len(head), max(len(head) // 256, 1))
    integers = quantise_rows(head[some])[0] if head.is_floating_point() else head[some]
    return torch.equal(integers, table.integers(some.to(table.scale.device)).cpu())


def quantized(
    model: PaliGemmaForConditionalGeneration,
    tensors: Iterable[tuple[str, str, Tensor]],
    device: torch.device | None,
    pack: bool,
) -> Iterator[tuple[str, str, Tensor]]:
    """The same tensors, matrices as int8 and scales; packs each once its module has taken it."""
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Int8Linear)}
    for name, key, tensor in tensors:
        layer = layers.get(name)
        if layer is None:
            yield name, key, tensor
            continue
        if tensor.is_floating_point() and tensor.ndim == 2:
            tensor, scales = quantise_rows(tensor.to(device))
            yield f"{name.removesuffix('weight')}scale", key, scales
        yield name, key, tensor
        del tensor
        if pack:
            layer.pack()
