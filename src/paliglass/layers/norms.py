"""RMSNorm, the decoder's normalisation (arXiv 1910.07467). The vision tower uses LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Divides each token by its root mean square, then scales it by `1 + weight`.

    Formula: `y = x / √(mean(x²) + eps) · (1 + w)`. LayerNorm would also subtract the mean and add
    a bias. Gemma stores `w`, not `1 + w`, so that weight decay pulls the scale towards 1.

    Computed in float32 and cast back last: `(x · w)` in bfloat16 would round twice.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: … × D → … × D, of the same dtype."""
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * (1.0 + self.weight.float())).type_as(x)
