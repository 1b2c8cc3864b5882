"""What takes a GPU fewer kernels, held to the plain modules by tests.

At one token a row a kernel takes longer to start than to run. A layer of the plain Gemma makes 62
calls for a token in bfloat16, 16 of them inside torch's way for a mask and shared keys; these make
32, and 26 where they are recorded (`cuda_graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast import attention
from paliglass.layers.attention import Attention
from paliglass.layers.kv_cache import KVCache
from paliglass.layers.norms import RMSNorm
from paliglass.modeling_gemma import GemmaAttention

__all__ = ["FusedAttention", "FusedGemmaAttention", "FusedRMSNorm", "replace"]


class FusedRMSNorm(RMSNorm):
    """`RMSNorm` by torch's own function, in float32 as well; 1 + weight is computed once."""

    gain: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        nn.Module.__init__(self)
        self.eps, self.weight = norm.eps, norm.weight
        self.register_buffer("gain", 1.0 + norm.weight.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: … × D → … × D, of the same dtype."""
        return F.rms_norm(x.float(), self.gain.shape, self.gain, self.eps).type_as(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts and moves: the gain stays float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.gain = 1.0 + self.weight.detach().float()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.gain.copy_(1.0 + self.weight.detach().float())


class FusedAttention(Attention):
    """`Attention` that writes out a single query's scores, and shares keys out for many.

    - one query: torch's fused kernel goes through all keys on one of a GPU's many processors;
      products of a group's queries use all. The mask may also be what is added to scores
    - many: torch has a fused kernel that takes a mask, and one that takes fewer key heads than
      query heads, and none that takes both
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B × H × T × head_dim."""
        heads, key_heads = query.shape[1], key.shape[1]
        if query.shape[2] == 1 and mask is not None:
            return self._attend_once(query, key, value, mask)
        if heads != key_heads and not self.softcap:
            key, value = (
                t[:, :, None].expand(-1, -1, heads // key_heads, -1, -1).flatten(1, 2)
                for t in (key, value)
            )
        return super().attend(query, key, value, mask)

    def _attend_once(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            blocked = torch.finfo(query.dtype).min
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, blocked)
        key_heads = key.shape[1]
        bias = mask.expand(len(query), key_heads, -1, -1).flatten(0, 1)  # (B · K) 1 S
        rows = query.reshape(len(bias), -1, query.shape[3])  # (B · K) H/K head_dim
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        if self.softcap:
            factor = self.scale / self.softcap
            scores = torch.baddbmm(bias, rows, keys.transpose(1, 2), beta=0, alpha=factor)
            scores = torch.add(bias, scores.tanh(), alpha=self.softcap)
        else:
            scores = torch.baddbmm(bias, rows, keys.transpose(1, 2), alpha=self.scale)
        return (scores.softmax(-1) @ values).reshape(query.shape)


class FusedGemmaAttention(GemmaAttention):
    """`GemmaAttention` that turns queries and keys together, in half of the kernels."""

    def __init__(self, plain: GemmaAttention) -> None:
        nn.Module.__init__(self)
        self.layer, self.head_dim = plain.layer, plain.head_dim
        for name, module in plain.named_children():
            setattr(self, name, module)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KVCache | None = None,
    ) -> Tensor:
        """As `GemmaAttention.forward`."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # B heads T head_dim
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = query.shape[1]
        turned = _turn(torch.cat((query, key), dim=1), *rotary)
        query, key = turned[:, :heads], turned[:, heads:]
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        return self.o_proj(self.attention(query, key, value, mask))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary`, half by half: (x₁ cos − x₂ sin, x₂ cos + x₁ sin)."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


def replace(model: nn.Module) -> None:
    """Puts them in the place of a model's own."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is RMSNorm:
                setattr(parent, name, FusedRMSNorm(child))
            elif type(child) is GemmaAttention:
                setattr(parent, name, FusedGemmaAttention(child))
    attention.replace(model, FusedAttention)
