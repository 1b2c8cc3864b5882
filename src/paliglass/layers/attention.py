"""Scaled dot-product attention (arXiv 1706.03762), the one place where tokens meet.

`attend_reference` is the formula, line by line; `Attention` is what the model runs: torch's fused
kernel, or `attend_in_pieces` where Gemma 2 caps the scores. Tests hold them together. Multi-head,
grouped-query (arXiv 2305.13245) and multi-query (arXiv 1911.02150) attention are the same code: H
query heads, K key/value heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MOST_SCORES", "Attention", "attend_grouped", "attend_in_pieces", "attend_reference"]

MOST_SCORES = 1 << 26  # of one product; with all that is made of them 12 bytes each in float32


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


def attend_grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """`attend_reference` without copies of keys: a group's queries are the rows of one product.

    Returns the output alone, B × H × T × head_dim.
    """
    heads, groups, width = query.shape[1], key.shape[1], query.shape[-1]
    rows = query.reshape(len(query), groups, -1, width)  # B K (H/K · T) head_dim
    scores = rows @ key.transpose(-1, -2) * scale  # B K (H/K · T) S
    if softcap:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores.reshape(*scores.shape[:2], heads // groups, -1, key.shape[2])  # B K H/K T S
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).flatten(2, 3)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).reshape(query.shape)


def attend_in_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """`attend_grouped` for so many queries at a time that there are at most `MOST_SCORES`.

    A picture of 896 × 896 is 4096 tokens, and 8 heads of them 134 million scores. Every query has a
    softmax of its own, so that pieces change nothing.
    """
    batch, heads, tokens, _ = query.shape
    at_once = max(1, MOST_SCORES // (batch * heads * key.shape[2]))
    if tokens <= at_once:
        return attend_grouped(query, key, value, mask, scale, softcap)
    pieces = []
    for start in range(0, tokens, at_once):
        some = slice(start, start + at_once)
        seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, some]
        pieces.append(attend_grouped(query[:, :, some], key, value, seen, scale, softcap))
    return torch.cat(pieces, dim=2)


class Attention(nn.Module):
    """Attention without parameters. A forward hook on it sees q, k, v (after RoPE) and the mask."""

    def __init__(self, scale: float, softcap: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.softcap = softcap

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes as in `attend_reference`. Returns B × T × (H · head_dim), heads side by side."""
        return self.attend(query, key, value, mask).transpose(1, 2).flatten(2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        if self.softcap:  # the fused kernel has no place for the cap
            return attend_in_pieces(query, key, value, mask, self.scale, self.softcap)
        return F.scaled_dot_product_attention(
            query, key, value, mask, scale=self.scale, enable_gqa=query.shape[1] != key.shape[1]
        )
