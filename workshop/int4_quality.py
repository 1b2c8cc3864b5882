"""What int4 costs in quality, and which matrices should stay int8: a model's answers once more.

    python -m workshop.int4_quality --scenes 50
    python -m workshop.int4_quality --model FOLDER --way int8 --way "int4; int8 tower"

As in `workshop.int8_quality`, the bfloat16 model's greedy answers go through models whose matrices
are packed, by the compiled kernels; the share of tokens that stay the same is printed for each way
of sharing out the bits, by task. The plain float32 model is compared too, for scale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from paliglass import PaliGemma, load
from paliglass.evaluation.judge import answer
from paliglass.fast.matrix import PackedMatrix, integers, multiply, quantize
from workshop.commands import CACHE, WorldCache, run
from workshop.int8_quality import ModelName, agreement, tell_agreement
from workshop.scene_scores import questions_of
from workshop.world import World

# By a module's name, the bits of its matrix; 0 leaves it as it is.
Bits = Callable[[str], int]
VISION = ("vision_tower", "multi_modal_projector")
HEAD = "language_model.lm_head"


class PackedLinear(nn.Module):
    """`nn.Linear` by the compiled kernels."""

    def __init__(self, matrix: PackedMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self.matrix, self.bias)


def with_bits(plain: PaliGemma, bits: Bits) -> PaliGemma:
    """A copy whose matrices are packed; the table's rows are the packed head's."""
    model = copy.copy(plain)
    model.model = copy.deepcopy(plain.model)
    for parent_name, parent in list(model.model.named_modules()):
        for name, child in list(parent.named_children()):
            full = f"{parent_name}.{name}".lstrip(".")
            if isinstance(child, nn.Linear) and bits(full):
                bias = None if child.bias is None else child.bias.data
                setattr(parent, name, PackedLinear(quantize(child.weight.data, bits(full)), bias))
    head = model.model.language_model.lm_head
    if isinstance(head, PackedLinear):
        rows, scales = integers(head.matrix)
        if head.matrix.bits == 4:
            scales = scales.repeat_interleave(32, 1)[:, : rows.shape[1]]
        else:
            scales = scales[:, None]
        table = model.model.language_model.model.embed_tokens
        table.weight = nn.Parameter((rows * scales).to(table.weight.dtype), requires_grad=False)
    return model


def layers(*numbers: int) -> tuple[str, ...]:
    return tuple(f"language_model.model.layers.{i}." for i in numbers)


def int8_in(*names: str) -> Bits:
    """int4, but int8 where a name starts with, or has, one of these."""
    return lambda name: 8 if any(part in name for part in names) else 4


WAYS: dict[str, Bits] = {
    "int8": lambda name: 8,
    "int4, all of it": lambda name: 4,
    "int4; int8 tower": int8_in(*VISION),
    "int4; int8 tower, head": int8_in(*VISION, HEAD),
    "int4; int8 tower, head, first layer": int8_in(*VISION, HEAD, *layers(0)),
    "int4; int8 tower, head, last layer": int8_in(*VISION, HEAD, *layers(3)),
    "int4; int8 tower, head, attention": int8_in(*VISION, HEAD, "self_attn"),
    "int4; int8 tower, head, values and outputs": int8_in(*VISION, HEAD, "v_proj", "o_proj"),
    "int4; int8 tower, head, down": int8_in(*VISION, HEAD, "down_proj"),
    "int4; int8 tower, first layer, attention": int8_in(*VISION, *layers(0), "self_attn"),
    "int4; int8 head, first layer, attention": int8_in(HEAD, *layers(0), "self_attn"),
    "int4; int8 tower, head, first layer, attention": int8_in(
        *VISION, HEAD, *layers(0), "self_attn"
    ),
}


@torch.inference_mode()
def int4_quality(
    model: ModelName = "mini",
    way: Annotated[
        list[str] | None,
        typer.Option(help=f"Of sharing out the bits; all by default: {'; or '.join(WAYS)}."),
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Of the test split.")] = 50,
    world_cache: WorldCache = CACHE,
) -> None:
    """Measure what int4 costs in quality, and which matrices should stay int8."""
    unknown = [name for name in way or () if name not in WAYS]
    if unknown:
        raise typer.BadParameter(f"--way {unknown[0]!r} is none of {', '.join(map(repr, WAYS))}")
    plain = load(model, device="cpu", dtype="bfloat16")
    side = plain.model.config.vision_config.image_size
    world = World(world_cache, "test", 1, side, codec=plain.mask_codec)
    cases = answer(plain, list(questions_of(world, "test", scenes, 8)), free=True)
    others = {"float32": load(model, device="cpu", dtype="float32")}
    others |= {name: with_bits(plain, WAYS[name]) for name in way or WAYS}
    tell_agreement(agreement(plain, others, cases))


if __name__ == "__main__":
    run(int4_quality)
