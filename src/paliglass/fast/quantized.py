"""A whole model in int8, or in int8 and int4: its linear layers, its tied table, and what lies
between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from paliglass.errors import PaliglassError
from paliglass.fast.attention import ExplicitAttention, replace
from paliglass.fast.int4 import Int4GeGLU, Int4Linear
from paliglass.fast.int8 import Int8Embedding, Int8Head, Int8Linear
from paliglass.fast.int8_blocks import Int8GeGLU, Int8GeluMLP, Int8LayerNorm, Int8RMSNorm
from paliglass.fast.matrix import bits_of, is_available, obstacle
from paliglass.fast.onednn import has_kernel
from paliglass.fast.timings import LayerTimes
from paliglass.modeling_gemma import GemmaDecoderLayer
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = ["explain", "fuse", "replace_linears", "require"]


def require(model: nn.Module, method: str) -> None:
    """Raises PaliglassError where int4 is asked for and cannot be had."""
    if method != "int4":
        return
    missing = obstacle()
    if missing is not None:
        raise PaliglassError(f"int4 needs compiled functions: {missing}")
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    if device.type != "cpu":
        raise PaliglassError(f"int4 runs on the CPU, the model is on {device}: give device cpu")


def replace_linears(model: nn.Module, method: str, packed: bool = True) -> None:
    """Puts a quantized layer in the place of every linear one, and ties the head to the table.

    Float matrices are quantized, one at a time; of those without memory empty ones are made.
    Matrices are packed where the processor has a kernel for it, int8 ones unless they are not to
    be: through those that are not, gradients flow. What is quantized already stays.
    """
    if isinstance(model, nn.Embedding):
        _become_int8(model, packed)
    in_int4 = dict(_int4_linears(model)) if method == "int4" else {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                layer: nn.Module
                if child not in in_int4:
                    layer = _int8(Int8Linear, child.weight, child.bias, packed)
                elif child.weight.is_meta:
                    layer = Int4Linear(*child.weight.shape)
                else:
                    layer = Int4Linear.quantize(child.weight.detach(), f"{in_int4[child]}.weight")
                setattr(parent, name, layer)
    if isinstance(model, PaliGemmaForConditionalGeneration):
        decoder = model.language_model
        table = decoder.model.embed_tokens
        if isinstance(table, nn.Embedding):
            _become_int8(table, packed)
        assert isinstance(table, Int8Embedding)
        table.dtype = model.dtype
        decoder.register_module("lm_head", Int8Head(table))
    for module in model.modules():  # those that were read as they are
        if isinstance(module, Int4Linear) or (packed and isinstance(module, Int8Linear)):
            module.pack()
        elif isinstance(module, Int8Linear):
            module.unpack()


def _int4_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The linear layers that become int4, and their names in a checkpoint."""
    for layer in model.modules():
        if isinstance(layer, GemmaDecoderLayer):
            for name, module in layer.named_modules():
                full = f"language_model.model.layers.{layer.self_attn.layer}.{name}"
                if isinstance(module, nn.Linear) and bits_of(full, "int4") == 4:
                    yield module, full


def _become_int8(table: nn.Embedding, packed: bool) -> None:
    """The module itself, whose parent may be unknown, becomes another."""
    dtype = table.weight.dtype
    table.__dict__ = _int8(Int8Embedding, table.weight, None, packed).__dict__
    table.__class__ = Int8Embedding  # type: ignore[assignment]
    assert isinstance(table, Int8Embedding)
    table.dtype = dtype


def _int8(kind: type[Int8Linear], weight: Tensor, bias: nn.Parameter | None, packed: bool) -> Any:
    if not weight.is_meta:
        make = kind.quantize_and_pack if packed else kind.quantize
        return make(weight.detach(), bias)
    empty = torch.empty(weight.shape, dtype=torch.int8, device="meta")
    return kind(empty, torch.empty(len(weight), device="meta"), bias)


def fuse(model: PaliGemmaForConditionalGeneration) -> None:
    """What packed matrices allow besides; nothing where they are not packed.

    They have no gradients, so the rest of the model wants none either: blocks work in place.
    """
    linears = (module for module in model.modules() if type(module) is Int8Linear)
    if not all(layer.packed is not None for layer in linears):
        return
    model.requires_grad_(False)
    for layer in model.vision_tower.vision_model.encoder.layers:
        _fuse_layer(layer, Int8GeluMLP, Int8LayerNorm, "layer_norm1", "layer_norm2")
    before_mlp = "post_attention_layernorm"  # Gemma 1's name for it
    if model.config.text_config.has_post_norms:
        before_mlp = "pre_feedforward_layernorm"
    for layer in model.language_model.model.layers:
        if isinstance(layer.get_submodule("mlp.down_proj"), Int4Linear):
            _fuse_layer(layer, Int4GeGLU, Int8RMSNorm, "input_layernorm")
        else:
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


def explain(method: str, measured: LayerTimes | None = None) -> list[str]:
    """What becomes of a quantized model on this processor; measured: at the last load, int8's."""
    missing = obstacle()
    if method == "int4" and missing is not None:
        return [f"int4 cannot be had: {missing}"]
    told = ["matrices are int8, but the decoder's MLPs after its first layer int4"]
    told = told if method == "int4" else []
    if has_kernel():
        told.append("int8 matrices are packed for oneDNN, activations quantized as they come")
    elif is_available():
        told.append("int8 matrices are multiplied by compiled functions: oneDNN has no kernel here")
    else:
        told.append(
            "matrices are int8 and are widened at every use: this processor has no kernel that "
            "multiplies int8 (AVX-512 VNNI, AMX)"
        )
    if missing is None:
        from paliglass.fast.processor import INSTRUCTION

        assert INSTRUCTION is not None
        faster = "" if method == "int4" else ", if a layer, run both ways at load, is faster so"
        told.append(f"tokens are decoded by one compiled function ({INSTRUCTION.name}){faster}")
        if measured is not None:
            told.append(str(measured))
    else:
        told.append(f"tokens would be faster by compiled functions, but {missing}")
    return told
