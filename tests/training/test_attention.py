"""Attention for training on a CPU is attention."""

from __future__ import annotations

import pytest
import torch

from paliglass.layers.attention import Attention, attend_reference
from paliglass.training.attention import PlainAttention


@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_is_attention(masked: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3)]
    mask = None
    if masked:
        mask = torch.rand(2, 1, 1, 5) < 0.6
        mask[..., 0] = True
    outputs = [kind(0.3)(*inputs, mask) for kind in (PlainAttention, Attention)]
    torch.testing.assert_close(outputs[0], outputs[1])
    gradients = [torch.autograd.grad(o.square().sum(), inputs) for o in outputs]
    torch.testing.assert_close(gradients[0], gradients[1])
    expected = attend_reference(*inputs, mask, 0.3)[0].transpose(1, 2).flatten(2)
    torch.testing.assert_close(outputs[0], expected)


def test_attention_for_one_key_head_equals_the_model_s() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 7, 8), torch.randn(2, 1, 7, 8)
    mask = torch.rand(2, 1, 5, 7) < 0.7
    mask[..., 0] = True
    expected = Attention(0.3)(query, key, value, mask)
    torch.testing.assert_close(PlainAttention(0.3)(query, key, value, mask), expected)
