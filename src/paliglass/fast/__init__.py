"""What makes a model fast, put in the place of its plain modules from outside.

`accelerate` is the only door; `explain` says what it does, and adapters learn beside `Int8Linear`.
The plain model knows nothing of what is in here, and a test holds each replacement to the module
that it replaces.

    int8.py int8_blocks.py   int8 matrices, and what lies between them in one go
    int4.py                  int4 matrices; quantized.py makes a model int8 or int4
    packed.py                bfloat16 matrices, laid out for a CPU's decoding
    widened.py               bfloat16 on processors without instructions for it
    attention.py             one query a row; prompts without the fused kernel
    last_positions.py        the last layer's MLP where somebody reads it
    fused.py cuda_graph.py   on a GPU: fewer kernels, and a decoded token as one CUDA graph
    compiled_model.py        decoding in int8 and int4 as one compiled function (extra `fast`)
    matrix.py decode.py      what calls compiled functions; threads.py runs them, compiled.py keeps
                             them, and their source is kernels.py, step.py and instructions.py
    timings.py               what was measured at load, for `explain`
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from paliglass.config import GemmaConfig
from paliglass.errors import PaliglassError
from paliglass.fast import (
    attention,
    compiled_model,
    cuda_graph,
    fused,
    last_positions,
    matrix,
    packed,
    quantized,
    timings,
    widened,
)
from paliglass.fast.int4 import Int4Linear
from paliglass.fast.int8 import Int8Embedding, Int8Linear
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

__all__ = [
    "METHODS",
    "Int4Linear",
    "Int8Embedding",
    "Int8Linear",
    "Method",
    "accelerate",
    "available_methods",
    "explain",
    "explain_gpu",
    "is_accelerated",
    "multiplies_bfloat16",
]

Method = Literal["int8", "int4"]
METHODS: tuple[Method, ...] = get_args(Method)


def accelerate(model: nn.Module, quantize: str | None = None, *, plain: bool = False) -> None:
    """Puts what is fastest on a model's processor in the place of its modules, for good.

    On a GPU that is norms and attention of fewer kernels, and tokens decoded as one CUDA graph
    (`fast.cuda_graph`); no GPU has run it together yet, and `plain` leaves it out.

    Attributes keep their names, so that a checkpoint's keys still fit. What is put in cannot be
    trained, and is of this processor; but see `plain`.

    Args:
        model: a `PaliGemmaForConditionalGeneration`; with `quantize` also one of its layers or its
            table, so that a model can be quantized while it is read, and a model without memory
            (torch's meta device), to be filled with matrices that are quantized already.
        quantize: "int8" makes the matrices int8, "int4" most of the decoder's int4 and the others
            int8; None leaves their numbers as they are.
        plain: do nothing but quantize. Gradients then flow through int8 matrices, which have none
            themselves: adapters beside them can be trained (QLoRA, arXiv 2305.14314). Through int4
            ones none flow.

    Raises PaliglassError for another method, and for int4 where it needs what is not there: the
    extra `fast`, a processor with dot products of bytes, a model on the CPU.
    """
    if quantize not in (None, *METHODS):
        raise PaliglassError(f"quantize {quantize!r} is unknown: choose {', '.join(METHODS)}")
    if quantize is not None:
        quantized.require(model, quantize)
        quantized.replace_linears(model, quantize, packed=not plain)
    if plain or not isinstance(model, PaliGemmaForConditionalGeneration):
        return
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    last_positions.replace(model)
    # A model that several processes hold together waits for the others, in every layer.
    if model.device.type == "cuda" and type(model) is PaliGemmaForConditionalGeneration:
        fused.replace(model)
        cuda_graph.replace(model)
        return
    attention.replace(model)
    if model.device.type != "cpu":
        return
    if quantize is not None:
        quantized.fuse(model)
    else:
        packed.pack_linears(model.language_model)
    widened.widen(model, model.dtype)
    if quantize is not None:
        compiled_model.replace(model)


def is_accelerated(model: PaliGemmaForConditionalGeneration) -> bool:
    """Whether `accelerate` did more to a model than `plain`, so that it cannot be trained."""
    return isinstance(model.language_model.model, last_positions.LastPositionsModel)


def available_methods() -> tuple[Method, ...]:
    """Those of METHODS that can be had on this processor, with what is installed."""
    return METHODS if matrix.is_available() else ("int8",)


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16: without, float32 is faster."""
    return packed.can_pack()


def explain_gpu() -> str:
    """What `accelerate` does for a model on a GPU."""
    return (
        "a decoded token is one CUDA graph, of fewer kernels than the plain model's; the graph of "
        "the plain kernels was measured, all of it together has run on no GPU yet"
    )


def explain(
    dtype: torch.dtype, quantize: str | None = None, config: GemmaConfig | None = None
) -> list[str]:
    """What `accelerate` does for a model in this dtype on this processor, and why: a line each.

    config: the decoder's, to also tell what was measured when one of its shape was loaded last.
    """
    if quantize is not None:
        measured = None
        if quantize == "int8" and config is not None and matrix.is_available():
            measured = timings.recall(config)
        return quantized.explain(quantize, measured)
    if not widened.has_kernel(dtype):
        return [
            f"matrices stay {str(dtype).removeprefix('torch.')} and are widened to float32 a few "
            "rows at a time: this processor has no instructions for them"
        ]
    if dtype == torch.bfloat16 and packed.can_pack():
        return ["bfloat16 matrices are packed for oneDNN at the first decoded token"]
    return ["matrices stay as they are: torch's kernels read them so"]
