"""The fused kernel against the formula, with every way of sharing keys among queries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paliglass.fast.attention import ExplicitAttention, GroupedAttention
from paliglass.fast.fused import FusedAttention
from paliglass.layers.attention import Attention, attend_grouped, attend_reference


def by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention with loops: one batch row, head and query at a time."""
    batch, heads, length, _ = query.shape
    group = heads // key.shape[1]
    output = torch.zeros(batch, length, heads, value.shape[-1])
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                seen = mask[b, 0, t].nonzero()[:, 0].tolist()
                scores = [float(query[b, h, t] @ key[b, h // group, s]) * scale for s in seen]
                if softcap:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                for s, weight in zip(seen, weights, strict=True):
                    output[b, t, h] += weight / sum(weights) * value[b, h // group, s]
    return output.flatten(2)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    length=st.integers(1, 5),
    past=st.integers(0, 4),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
def test_attention_is_the_formula(
    batch: int, kv_heads: int, group: int, length: int, past: int, softcap: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, kv_heads * group, length, 8, generator=generator)
    key, value = torch.randn(2, batch, kv_heads, past + length, 8, generator=generator)
    mask = torch.rand(batch, 1, length, past + length, generator=generator) < 0.6
    mask[..., 0] = True
    expected = by_hand(query, key, value, mask, 0.5, softcap)
    output = Attention(0.5, softcap)(query, key, value, mask)
    reference, weights = attend_reference(query, key, value, mask, 0.5, softcap)
    grouped = attend_grouped(query, key, value, mask, 0.5, softcap)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(grouped.transpose(1, 2).flatten(2), expected, atol=1e-5, rtol=0)
    for kind in (GroupedAttention, ExplicitAttention, FusedAttention):
        fast = kind(0.5, softcap)(query, key, value, mask)
        torch.testing.assert_close(fast, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(reference.transpose(1, 2).flatten(2), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert not weights.masked_select(~mask.expand_as(weights)).any()


@pytest.mark.parametrize("most", [1, 7, 60, 10_000])
@pytest.mark.parametrize("mask_rows", [0, 1, 9])
def test_many_scores_are_computed_in_pieces(
    monkeypatch: pytest.MonkeyPatch, most: int, mask_rows: int
) -> None:
    """However few at a time, down to a query; no product has more scores than there may be."""
    monkeypatch.setattr("paliglass.layers.attention.MOST_SCORES", most)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 9, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 12, 8, generator=generator)
    mask = torch.rand(1, 1, mask_rows, 12, generator=generator) < 0.6 if mask_rows else None
    if mask is not None:
        mask[..., 0] = True
    sizes = []

    def noted(some: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(some.shape[2])
        return attend_grouped(some, *rest)

    monkeypatch.setattr("paliglass.layers.attention.attend_grouped", noted)
    found = Attention(0.5, 2.0)(query, key, value, mask)
    expected = attend_grouped(query, key, value, mask, 0.5, 2.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert sum(sizes) == 9
    assert max(sizes) == max(1, min(9, most // (2 * 4 * 12)))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_fused_kernel_has_the_formulas_gradients(kv_heads: int) -> None:
    def gradients(fused: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, 4, 5, 8), (2, kv_heads, 5, 8), (2, kv_heads, 5, 8)]
        inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
        mask = torch.ones(2, 1, 5, 5).tril().bool()
        if fused:
            output = Attention(0.3)(*inputs, mask)
        else:
            output = attend_reference(*inputs, mask, 0.3)[0].transpose(1, 2).flatten(2)
        output.square().sum().backward()
        return [tensor.grad for tensor in inputs if tensor.grad is not None]

    for ours, reference in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


def test_large_scores_do_not_overflow() -> None:
    query = torch.full((1, 1, 1, 4), 1e4)
    key, value = torch.randn(1, 1, 3, 4) * 1e4, torch.randn(1, 1, 3, 4)
    assert Attention(1.0)(query, key, value, None).isfinite().all()
    assert attend_reference(query, key, value, None, 1.0)[0].isfinite().all()


def test_no_mask_means_everyone() -> None:
    tensors = torch.randn(3, 1, 2, 4, 8)
    everyone = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    attention = Attention(0.3)
    torch.testing.assert_close(attention(*tensors, None), attention(*tensors, everyone))
