"""Attention for training, where torch's fused kernel is not the quickest or is not taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paliglass.layers.attention import Attention, attend_grouped

__all__ = ["PlainAttention", "RepeatedAttention", "choose_attention", "use_attention"]


class PlainAttention(Attention):
    """`Attention` without the fused kernel, whose backward pass is slow on a CPU.

    For rows of up to a few hundred tokens forward and backward take a third to a half of its time.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        return attend_grouped(query, key, value, mask, self.scale, self.softcap)


class RepeatedAttention(Attention):
    """`Attention` with a key and value head for each query head.

    torch has a fused kernel for a GPU that takes a mask, and one that takes fewer key heads than
    query heads, and none that takes both: it then writes all scores into memory, in float32.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        group = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        return super().attend(query, key, value, mask)


def use_attention(model: nn.Module, kind: type[Attention]) -> None:
    """Puts this kind in the place of every `Attention`."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is Attention:
                setattr(module, name, kind(child.scale, child.softcap))


def choose_attention(model: nn.Module, device: torch.device) -> None:
    """Puts the quickest kind for training on such a device in the place of every `Attention`."""
    if device.type in ("cpu", "cuda"):
        use_attention(model, PlainAttention if device.type == "cpu" else RepeatedAttention)
