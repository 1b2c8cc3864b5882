"""Attention for training on a CPU: two matrix products and a softmax."""

from __future__ import annotations

from torch import Tensor, nn

from paliglass.layers.attention import Attention, attend_grouped

__all__ = ["PlainAttention", "use_plain_attention"]


class PlainAttention(Attention):
    """`Attention` without the fused kernel, whose backward pass is slow on a CPU.

    For rows of up to a few hundred tokens forward and backward take a third to a half of its time.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        return attend_grouped(query, key, value, mask, self.scale, self.softcap)


def use_plain_attention(model: nn.Module) -> None:
    """Puts `PlainAttention` in the place of every `Attention`."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is Attention:
                setattr(module, name, PlainAttention(child.scale, child.softcap))
