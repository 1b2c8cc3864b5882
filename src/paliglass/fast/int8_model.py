"""A whole model in int8: its linear layers, its tied table, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.fast.attention import ExplicitAttention, replace
from paliglass.fast.int8 import Int8Embedding, Int8Head, Int8Linear, has_kernel
from paliglass.fast.int8_blocks import Int8GeGLU, Int8GeluMLP, Int8LayerNorm, Int8RMSNorm
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["explain", "fuse", "replace_linears"]


def replace_linears(model: nn.Module, packed: bool = True) -> None:
    """Puts an `Int8Linear` in the place of every linear layer, and ties the head to the table.

    Float matrices are quantized, one at a time; of those without memory empty ones are made.
    Matrices are packed where the processor has a kernel for it, unless they are not to be: through
    those that are not, gradients flow. What is int8 already stays.
    """
    if isinstance(model, nn.Embedding):
        _become_int8(model, packed)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                layer = _int8(Int8Linear, child.weight, child.bias)
                if packed:
                    layer.pack()
                setattr(parent, name, layer)
    if isinstance(model, PaliGemmaForConditionalGeneration):
        decoder = model.language_model
        table = decoder.model.embed_tokens
        if isinstance(table, nn.Embedding):
            _become_int8(table, packed)
        assert isinstance(table, Int8Embedding)
        table.dtype = model.dtype
        decoder.register_module("lm_head", Int8Head(table))
        for module in model.modules():  # those that were read in int8
            if packed and isinstance(module, Int8Linear):
                module.pack()


def _become_int8(table: nn.Embedding, packed: bool) -> None:
    """The module itself, whose parent may be unknown, becomes another."""
    dtype = table.weight.dtype
    table.__dict__ = _int8(Int8Embedding, table.weight, None).__dict__
    table.__class__ = Int8Embedding  # type: ignore[assignment]
    assert isinstance(table, Int8Embedding)
    table.dtype = dtype
    if packed:
        table.pack()


def _int8(kind: type[Int8Linear], weight: Tensor, bias: nn.Parameter | None) -> Any:
    if not weight.is_meta:
        return kind.quantize(weight.detach(), bias)
    empty = torch.empty(weight.shape, dtype=torch.int8, device="meta")
    return kind(empty, torch.empty(len(weight), device="meta"), bias)


def fuse(model: PaliGemmaForConditionalGeneration) -> None:
    """What packed matrices allow besides; nothing where they are not packed.

    They have no gradients, so the rest of the model wants none either: blocks work in place.
    """
    if any(layer.packed is None for layer in model.modules() if isinstance(layer, Int8Linear)):
        return
    model.requires_grad_(False)
    for layer in model.vision_tower.vision_model.encoder.layers:
        _fuse_layer(layer, Int8GeluMLP, Int8LayerNorm, "layer_norm1", "layer_norm2")
    before_mlp = "post_attention_layernorm"  # Gemma 1's name for it
    if model.config.text_config.has_post_norms:
        before_mlp = "pre_feedforward_layernorm"
    for layer in model.language_model.model.layers:
        _fuse_layer(layer, Int8GeGLU, Int8RMSNorm, "input_layernorm", before_mlp)
    replace(model, ExplicitAttention)
    # glibc gives freed memory back at once, and takes 91 000 new pages for each prompt of 3B, but
    # adapts to the largest block that it has seen freed, up to 32 MiB.
    torch.empty(31 << 20, dtype=torch.uint8)


def _fuse_layer(
    layer: nn.Module, mlp: type[nn.Module], norm: Callable[[Any], nn.Module], *names: str
) -> None:
    layer.set_submodule("mlp", mlp(**dict(layer.get_submodule("mlp").named_children())))
    for name in names:  # the norms before int8 matrices
        layer.set_submodule(name, norm(layer.get_submodule(name)))


def explain() -> list[str]:
    """What becomes of a model in int8 on this processor."""
    if has_kernel():
        return ["int8 matrices are packed for oneDNN, activations quantized as they come"]
    return [
        "matrices are int8 and are widened at every use: this processor has no kernel that "
        "multiplies int8 (AVX-512 VNNI, AMX)"
    ]
