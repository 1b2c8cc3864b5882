"""What the compiled kernels compute, in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast.layout import GROUP
from paliglass.fast.matrix import PackedMatrix, integers
from paliglass.modeling_gemma import GemmaForCausalLM

NORMS = ("layernorm", "norm")


def weights(matrix: PackedMatrix) -> Tensor:
    """The numbers that a packed matrix stands for, N × K in float64."""
    found, scales = integers(matrix)
    if matrix.bits == 8:
        return found.double() * scales[:, None].double()
    return found.double() * scales.double().repeat_interleave(32, 1)[:, : matrix.columns]


def rounded(x: Tensor, bits: int) -> Tensor:
    """Activations as a matrix of so many bits sees them, … × K in float64."""
    group = GROUP[bits]
    groups = F.pad(x.float(), (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.div(torch.full_like(largest, 127), largest).nan_to_num(0, 0, 0)
    steps = (groups * inverse).round()
    scale = (largest * torch.tensor(1 / 127)).double()
    return (steps.double() * scale).flatten(-2)[..., : x.shape[-1]]


class EmulatedLinear(nn.Module):
    """`nn.Linear` with a packed matrix, exact but for its roundings."""

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.bits, self.numbers = matrix.bits, weights(matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (rounded(x, self.bits) @ self.numbers.T).to(x.dtype)


def decoder_matrices(decoder: GemmaForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of what `Decoder` takes packed."""
    for name, module in decoder.model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            yield name, module.weight.data


def decoder_norms(decoder: GemmaForCausalLM) -> dict[str, Tensor]:
    parameters = decoder.model.named_parameters()
    return {n.removesuffix(".weight"): p for n, p in parameters if n.endswith("norm.weight")}


def emulate(decoder: GemmaForCausalLM, matrices: dict[str, PackedMatrix]) -> None:
    """Puts emulated matrices in the place of a plain decoder's."""
    for name, matrix in matrices.items():
        if name == "embed_tokens":
            decoder.model.embed_tokens.weight.data = weights(matrix).float()
            decoder.lm_head = EmulatedLinear(matrix)
        else:
            decoder.model.set_submodule(name, EmulatedLinear(matrix))
