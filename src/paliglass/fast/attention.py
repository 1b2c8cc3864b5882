"""Attention for running, held to `layers.attention` by tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paliglass.layers.attention import Attention

__all__ = ["ExplicitAttention", "GroupedAttention", "replace"]


class GroupedAttention(Attention):
    """`Attention` whose single queries share the reading of their group's keys.

    With `enable_gqa=True` torch's kernel for one query a row takes sixteen times as long on a CPU
    as with a group's heads as the rows of one product.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        if query.shape[2] != 1 or self.softcap:
            return super().attend(query, key, value, mask)
        grouped = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        return super().attend(grouped, key, value, mask).reshape(query.shape)


class ExplicitAttention(GroupedAttention):
    """Attention for running alone, on a CPU: the scores are written out and overwritten.

    Two products and a softmax in place, a group's queries as rows of one product: half the time of
    torch's fused kernel there, and rounded otherwise. No gradients. Where the scores would take
    much memory, and where they are capped, it is `GroupedAttention`.
    """

    LARGEST = 1 << 24  # scores, over all heads and rows

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        rows, heads, count, width = query.shape
        if count == 1 or self.softcap or rows * heads * count * key.shape[2] > self.LARGEST:
            return super().attend(query, key, value, mask)
        groups = key.shape[1]
        scores = query.reshape(rows, groups, -1, width) @ key.transpose(-1, -2)  # B K (H/K · T) S
        scores.mul_(self.scale)
        if mask is not None and not mask.all():
            apart = scores.view(rows, groups, -1, count, key.shape[2])
            apart.masked_fill_(~mask[:, None], torch.finfo(scores.dtype).min)
        return (torch.softmax(scores, -1, out=scores) @ value).reshape(query.shape)


def replace(model: nn.Module, kind: type[Attention] = GroupedAttention) -> None:
    """Puts another kind in the place of every `Attention`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Attention) and type(child) in (Attention, GroupedAttention):
                setattr(module, name, kind(child.scale, child.softcap))
