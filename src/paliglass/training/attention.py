"""Attention for training on a CPU: two matrix products and a softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paliglass.layers.attention import Attention


class PlainAttention(Attention):
    """`Attention` without the fused kernel, whose backward pass is slow on a CPU.

    For rows of up to a few hundred tokens forward and backward take a third to a half of its time.
    The query heads of one key/value head share a product.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes as in `attend_reference`."""
        heads, groups = query.shape[1], key.shape[1]
        grouped = (query * self.scale).reshape(len(query), groups, -1, query.shape[-1])
        scores = grouped @ key.transpose(-1, -2)  # B K (H/K · T) S
        if self.softcap:
            scores = (scores / self.softcap).tanh() * self.softcap
        if mask is not None:
            scores = scores.reshape(*scores.shape[:2], heads // groups, -1, key.shape[2])
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
            scores = scores.flatten(2, 3)
        output = scores.softmax(-1).to(value.dtype) @ value
        return output.reshape(query.shape).transpose(1, 2).flatten(2)


def use_plain_attention(model: nn.Module) -> None:
    """Puts `PlainAttention` in the place of every `Attention`."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is Attention:
                setattr(module, name, PlainAttention(child.scale, child.softcap))
