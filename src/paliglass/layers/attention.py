"""Scaled dot-product attention (arXiv 1706.03762), the one place where tokens meet.

`attend_reference` is the formula, line by line; `Attention` is what the model runs: torch's fused
kernel, or `attend_capped` where Gemma 2 caps the scores. Tests hold them together. Multi-head,
grouped-query (arXiv 2305.13245) and multi-query (arXiv 1911.02150) attention are the same code: H
query heads, K key/value heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(cap(Q·Kᵀ·scale) where the mask allows)·V, with `cap(x) = c·tanh(x / c)`.

    query: B × H × T × head_dim; key, value: B × K × S × head_dim, K a divisor of H: query heads
    0 … H/K − 1 read key head 0, and so on. mask: B or 1 × 1 × T × S, True = may see.
    Returns the output, B × H × T × head_dim, and the weights, B × H × T × S.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * scale
    if softcap:  # big_vision writes "no cap" as 0
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights @ value, weights


def attend_capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """`attend_reference` with a cap and without copies: a group's queries share one product.

    Returns the output alone, B × H × T × head_dim.
    """
    heads, groups = query.shape[1], key.shape[1]
    grouped = query.reshape(len(query), groups, -1, query.shape[-1])  # B K (H/K · T) head_dim
    scores = ((grouped @ key.transpose(-1, -2) * scale) / softcap).tanh() * softcap
    scores = scores.reshape(*scores.shape[:2], heads // groups, -1, key.shape[2])  # B K H/K T S
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    output = weights.flatten(2, 3) @ value
    return output.reshape(query.shape)


class Attention(nn.Module):
    """Attention without parameters. A forward hook on it sees q, k, v (after RoPE) and the mask."""

    def __init__(self, scale: float, softcap: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.softcap = softcap

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes as in `attend_reference`. Returns B × T × (H · head_dim), heads side by side."""
        shape = query.shape
        if shape[2] == 1 and not self.softcap:
            # Heads of one group then read the same keys under the same mask: as rows of one product
            # they read them once. Told of groups, torch's kernel is sixteen times slower here.
            query = query.reshape(shape[0], key.shape[1], -1, shape[3])
        if self.softcap:  # the fused kernel has no place for the cap
            output = attend_capped(query, key, value, mask, self.scale, self.softcap)
        else:
            output = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                scale=self.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        return output.reshape(shape).transpose(1, 2).flatten(2)


class ExplicitAttention(Attention):
    """Attention for running alone, on a CPU: the scores are written out and overwritten.

    Two products and a softmax in place, a group's queries as rows of one product: half the time of
    torch's fused kernel there, and rounded otherwise. No gradients. Where the scores would take
    much memory, and where they are capped, it is `Attention`.
    """

    LARGEST = 1 << 24  # scores, over all heads and rows

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rows, heads, count, width = query.shape
        if count == 1 or self.softcap or rows * heads * count * key.shape[2] > self.LARGEST:
            return super().forward(query, key, value, mask)
        groups = key.shape[1]
        scores = query.reshape(rows, groups, -1, width) @ key.transpose(-1, -2)  # B K (H/K · T) S
        scores.mul_(self.scale)
        if mask is not None and not mask.all():
            apart = scores.view(rows, groups, -1, count, key.shape[2])
            apart.masked_fill_(~mask[:, None], torch.finfo(scores.dtype).min)
        output = torch.softmax(scores, -1, out=scores) @ value
        return output.reshape(query.shape).transpose(1, 2).flatten(2)
