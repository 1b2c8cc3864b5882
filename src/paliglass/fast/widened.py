"""Matrices that a processor cannot multiply as they are: made float32 a few rows at a time.

Without bfloat16 instructions (AVX-512 BF16, or ARM's) a prompt's products in bfloat16 take four to
six times those in float32. Here a matrix keeps its 16 or 8 bits in memory; a few rows at a time are
widened into the processor's cache, where the float32 kernel reads them. Sums are float32, rounded
once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast.packed import can_pack
from paliglass.layers.attention import Attention

# Numbers that are widened at once: 2 MB of float32.
AT_ONCE = 1 << 19
# Of fewer tokens, torch's kernels are through before their matrix would be widened.
FEWEST_TOKENS = 4


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices of a floating-point dtype as they are."""
    if dtype == torch.bfloat16:
        return can_pack()
    if dtype == torch.float16:
        return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def widened_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """scale · (x · Wᵀ) + bias, … × K → … × N in x's dtype. weight: N × K of any dtype; scale: N."""
    tokens = x.reshape(-1, x.shape[-1]).float()
    y = x.new_empty(len(tokens), len(weight))
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        product = F.linear(tokens, weight[rows].float())
        if scale is not None:
            product *= scale[rows]
        if bias is not None:
            product += bias[rows]
        y[:, rows] = product
    return y.view(*x.shape[:-1], len(weight))


class WidenedLinear(nn.Linear):
    """`nn.Linear`, … × K → … × N, that widens its matrix where no gradient is wanted."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        count, gradients = x.shape[:-1].numel(), torch.is_grad_enabled()
        if count >= FEWEST_TOKENS and not gradients:
            return widened_linear(x, self.weight, self.bias)
        if count == 1 and self.bias is None and not gradients:
            # torch's product with a vector reads the matrix faster than that with a row does.
            return torch.mv(self.weight, x.flatten()).view(*x.shape[:-1], self.out_features)
        return super().forward(x)


class WidenedAttention(Attention):
    """Another attention in float32, in and out as it comes."""

    def __init__(self, attention: Attention) -> None:
        super().__init__(attention.scale, attention.softcap)
        self.attention = attention

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        wide = self.attention.attend(query.float(), key.float(), value.float(), mask)
        return wide.to(query.dtype)


def widen(model: nn.Module, dtype: torch.dtype) -> None:
    """Puts both in the place of a model's own on the CPU, where its dtype has no kernel there."""
    if has_kernel(dtype):
        return
    for parent in list(model.modules()):
        if isinstance(parent, WidenedAttention):
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, WidenedLinear(child))
            elif isinstance(child, Attention) and not isinstance(child, WidenedAttention):
                setattr(parent, name, WidenedAttention(child))
