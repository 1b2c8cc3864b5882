"""Rotary position embedding (arXiv 2104.09864): positions as rotations of queries and keys.

Pair i of a head's channels is turned by the angle `position · θ_i`, `θ_i = base^(-2i / head_dim)`.
A dot product of two rotated vectors depends on the difference of their positions alone, so
attention sees "three tokens back", never "token 57".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rotary", "rotary_cos_sin"]


def rotary_cos_sin(
    positions: Tensor, head_dim: int, base: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for B × T positions, each B × 1 × T × head_dim.

    The angles are computed in float32 whatever the model's dtype (bfloat16 cannot even count past
    256) and only the results are cast, as transformers does.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / base ** (exponents / head_dim)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(x₁, x₂) → (−x₂, x₁) on the halves of the last axis: a quarter turn of every pair.

    Channel i is paired with channel i + head_dim/2 (as in Gemma's weights), not with i + 1.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns x: B × H × T × head_dim by the angles of `rotary_cos_sin`."""
    return x * cos + rotate_half(x) * sin
