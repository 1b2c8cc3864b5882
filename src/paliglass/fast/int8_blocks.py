"""What lies between int8 matrices, done in one go: norms, and the middle of MLPs.

Beside oneDNN's products, a prompt's time goes into passes over activations: scales, GELU, the
largest number of each token, rounding. Here they are made some tokens at a time, on numbers that
stay in the processor's cache. Each block gives what the plain module gives with `Int8Linear`s, up
to bfloat16's rounding, and has its attributes' names, so that a checkpoint's keys fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from paliglass.fast.int8 import (
    Int8Linear,
    QuantizedActivation,
    quantize_token,
    quantize_tokens,
)
from paliglass.fast.onednn import LOW_ZERO
from paliglass.layers.norms import RMSNorm

LEAST_GELU = -0.1701  # GELU's lowest value, rounded down
# Tokens that an MLP takes at once: oneDNN's kernels for AMX lose half of their rate at 256 tokens
# of 3B's down_proj and at 264 of the others. Elsewhere smaller parts would but read matrices again.
MOST_TOKENS = 240 if torch.cpu._is_amx_tile_supported() else 1024


def gelu_tanh_(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (arXiv 1606.08415) in float32, in place, as x · σ(2z).

    z = √(2/π) · (x + 0.044715 x³), for ½(1 + tanh z) = σ(2z): these passes take about half the
    time of torch's GELU.
    """
    z = x.square()
    torch.addcmul(x, z, x, value=0.044715, out=z)
    return x.mul_(z.mul_(2 * math.sqrt(2 / math.pi)).sigmoid_())


def in_parts(block: Callable[[QuantizedActivation], Tensor], tokens: QuantizedActivation) -> Tensor:
    """What a block makes of tokens, … × K → … × N, `MOST_TOKENS` at a time."""
    parts = math.ceil(len(tokens) / MOST_TOKENS)
    if parts <= 1:
        return block(tokens)
    y = torch.cat([block(some) for some in tokens.chunk(parts)])
    return y.view(*tokens.shape[:-1], y.shape[-1])


class Int8RMSNorm(nn.Module):
    """An RMSNorm, … × D, whose output int8 matrices alone read, several of them: quantised once."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps
        self._gain = 1 + norm.weight.detach().float()

    def forward(self, x: Tensor) -> QuantizedActivation:
        """… × D → as many tokens."""
        return QuantizedActivation.of(x, self._normalize)

    def _normalize(self, x: Tensor, _: slice) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x.mul_(squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self._gain)


class Int8LayerNorm(nn.LayerNorm):
    """A LayerNorm, … × D, of which the same holds."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> QuantizedActivation:  # type: ignore[override]  # not activations
        """… × D → as many tokens."""
        return QuantizedActivation.of(super().forward(x))


class Int8GeGLU(nn.Module):
    """down(gelu(gate(x)) · up(x)), the decoder's MLP."""

    def __init__(self, gate_proj: Int8Linear, up_proj: Int8Linear, down_proj: Int8Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Tensor | QuantizedActivation) -> Tensor:
        """… × D → … × D."""
        return in_parts(self._of_some, QuantizedActivation.of(x))

    def _of_some(self, tokens: QuantizedActivation) -> Tensor:
        scales = tokens.scales
        gate, up = self.gate_proj.product(tokens), self.up_proj.product(tokens)
        if isinstance(scales, float):
            return self.down_proj(
                tokens.replace_numbers(*quantize_token(gelu_tanh_(gate).mul_(up)))
            )

        def gated(some: Tensor, rows: slice) -> Tensor:
            return gelu_tanh_(some.mul_(scales[rows])).mul_(up[rows])

        integers, own = quantize_tokens(gate, gated)
        # What up's products lack of their scale is the same for all of a token.
        return self.down_proj(tokens.replace_numbers(integers, own * scales))


class Int8GeluMLP(nn.Module):
    """fc2(gelu(fc1(x))), the vision tower's MLP."""

    def __init__(self, fc1: Int8Linear, fc2: Int8Linear) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor | QuantizedActivation) -> Tensor:
        """… × D → … × D."""
        return in_parts(self._of_some, QuantizedActivation.of(x))

    def _of_some(self, tokens: QuantizedActivation) -> Tensor:
        scales, bias = tokens.scales, self.fc1.bias
        if isinstance(scales, float) or bias is None:
            return self.fc2(gelu_tanh_(self.fc1(tokens).float()).to(tokens.dtype))
        product = self.fc1.product(tokens)

        def activated(some: Tensor, rows: slice) -> Tensor:
            return gelu_tanh_(some.mul_(scales[rows]).add_(bias))

        integers, own = quantize_tokens(product, activated, least=LEAST_GELU)
        return self.fc2(tokens.replace_numbers(integers, own, LOW_ZERO))
