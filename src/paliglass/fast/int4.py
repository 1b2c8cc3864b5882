"""Matrices in int4, by compiled functions alone: nine sixteenths of int8's memory.

A scale for each 32 inputs of a channel, searched for the least squared error, and 16 values that
lie where weights are dense: see `layout`. Only the decoder's MLPs, but for the first layer's, are
so; the rest is int8, since mini loses most by it (`python -m workshop.int4_quality`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paliglass.errors import CheckpointError
from paliglass.fast.layout import BLOCK, SPAN, SPAN_4
from paliglass.fast.matrix import (
    PackedMatrix,
    geglu,
    group_scales,
    multiply,
    quantize,
)
from paliglass.tensors import is_finite

__all__ = ["Int4GeGLU", "Int4Linear"]


class Int4Linear(nn.Module):
    """`nn.Linear` without a bias and with an int4 matrix: … × K → … × N, in x's dtype.

    weight: the packed bytes, N/16 × K/64 × 576 of uint8. matrix: the same, for compiled functions,
    once it is quantized or `pack` was called.
    """

    weight: Tensor

    def __init__(self, out_features: int, in_features: int, weight: Tensor | None = None) -> None:
        """weight: None where it is still to be filled in."""
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        shape = -(-out_features // BLOCK), -(-in_features // SPAN), SPAN_4
        if weight is None:
            weight = torch.empty(shape, dtype=torch.uint8, device="meta")
        self.register_buffer("weight", weight.view(shape))
        self.matrix: PackedMatrix | None = None

    @classmethod
    def quantize(cls, weight: Tensor, name: str) -> Int4Linear:
        """From float weights, N × K. Raises CheckpointError, with `name`, for one without value."""
        matrix = quantize(weight, 4)
        if not is_finite(group_scales(matrix)):
            raise CheckpointError(f"{name} holds NaN or an infinity: the checkpoint is broken")
        rows, columns = weight.shape
        layer = cls(rows, columns, matrix.weights)
        layer.matrix = matrix
        return layer

    def pack(self) -> None:
        """Makes weights that a folder held ready for the kernels."""
        if self.matrix is None and not self.weight.is_meta:
            shape = self.out_features, self.in_features
            self.matrix = PackedMatrix.of_bytes(4, *shape, self.weight.flatten())
            self.weight = self.matrix.weights.view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """… × K → … × N."""
        assert self.matrix is not None
        return multiply(x, self.matrix)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int4GeGLU(nn.Module):
    """down(gelu(gate(x)) · up(x)), the decoder's MLP, in one compiled function."""

    def __init__(self, gate_proj: Int4Linear, up_proj: Int4Linear, down_proj: Int4Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Tensor) -> Tensor:
        """… × D → … × D."""
        gate, up, down = self.gate_proj.matrix, self.up_proj.matrix, self.down_proj.matrix
        assert gate is not None
        assert up is not None
        assert down is not None
        return geglu(x, gate, up, down)
