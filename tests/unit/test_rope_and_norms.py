"""Rotary positions are relative; RMSNorm is its formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paliglass.layers.norms import RMSNorm
from paliglass.layers.rope import apply_rotary, rotary_cos_sin


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """A vector at a position."""
    cos, sin = rotary_cos_sin(torch.tensor([[position]]), x.shape[-1], 10_000.0, torch.float32)
    return apply_rotary(x[None, None, None], cos, sin)[0, 0, 0]


@given(distance=st.integers(-50, 50), start=st.integers(60, 4000), shift=st.integers(0, 4000))
def test_a_score_depends_on_the_distance_alone(distance: int, start: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    here = rotated(query, start) @ rotated(key, start + distance)
    there = rotated(query, start + shift) @ rotated(key, start + shift + distance)
    torch.testing.assert_close(here, there, atol=2e-3, rtol=0)


def test_scores_differ_between_distances() -> None:
    query = key = torch.ones(16)
    scores = [float(rotated(query, 100) @ rotated(key, 100 + d)) for d in range(5)]
    assert scores[0] == max(scores)
    assert len(set(scores)) == 5


def test_each_pair_turns_by_its_own_angle() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 0.0])  # the first pair is channels 0 and 2
    expected = torch.tensor([math.cos(3), 0, math.sin(3), 0])
    torch.testing.assert_close(rotated(x, 3), expected)
    y = torch.tensor([0.0, 1.0, 0.0, 0.0])  # the second turns a hundred times slower
    expected = torch.tensor([0, math.cos(0.03), 0, math.sin(0.03)])
    torch.testing.assert_close(rotated(y, 3), expected)


def test_rotation_keeps_lengths() -> None:
    x = torch.randn(16)
    torch.testing.assert_close(rotated(x, 1234).norm(), x.norm())


def test_angles_are_float32_even_for_bfloat16_models() -> None:
    """bfloat16 cannot tell position 1000 from 1001."""
    positions = torch.tensor([[1000, 1001]])
    cos, _ = rotary_cos_sin(positions, 16, 10_000.0, torch.bfloat16)
    exact, _ = rotary_cos_sin(positions, 16, 10_000.0, torch.float32)
    assert cos.dtype == torch.bfloat16
    torch.testing.assert_close(cos, exact.bfloat16(), atol=0, rtol=0)
    assert cos[0, 0, 0, 0] != cos[0, 0, 1, 0]


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(3)
    norm.weight.data = torch.tensor([0.0, 1.0, -1.0])
    x = torch.tensor([3.0, 4.0, 5.0])
    root = math.sqrt((9 + 16 + 25) / 3)
    torch.testing.assert_close(norm(x), torch.tensor([3 / root, 8 / root, 0.0]))


def test_a_fresh_rms_norm_gives_unit_size_whatever_the_scale() -> None:
    x = torch.randn(4, 64)
    for scale in (1e-2, 1.0, 1e4):
        output = RMSNorm(64)(x * scale)
        torch.testing.assert_close(output.square().mean(-1), torch.ones(4), atol=2e-2, rtol=0)


def test_rms_norm_rounds_once_in_bfloat16() -> None:
    norm = RMSNorm(64).bfloat16()
    norm.weight.data = torch.randn(64).bfloat16()
    x = torch.randn(8, 64).bfloat16()
    exact = RMSNorm(64)
    exact.weight.data = norm.weight.data.float()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), exact(x.float()).bfloat16())


@pytest.mark.parametrize("size", [1, 7])
def test_zeros_stay_zeros(size: int) -> None:
    assert torch.equal(RMSNorm(size)(torch.zeros(2, size)), torch.zeros(2, size))
