"""What several tests of units share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paliglass.ops import int8


@pytest.fixture(
    params=[
        pytest.param(
            "oneDNN", marks=pytest.mark.skipif(not int8.has_kernel(), reason="no int8 kernel here")
        ),
        "integers",
    ]
)
def int8_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's int8 kernel, where it has one, and its arithmetic in plain integers."""
    if request.param == "oneDNN":
        return

    def multiply(
        tokens: Tensor,
        packed: Tensor,
        scales: Tensor,
        dtype: torch.dtype,
        token_scale: float = 1.0,
        zero_point: int = int8.ZERO_POINT,
    ) -> Tensor:
        product = (tokens.double() - zero_point) @ packed.double().T
        return (product * token_scale * scales.double()).to(dtype)

    monkeypatch.setattr(int8, "has_kernel", lambda: True)
    monkeypatch.setattr(int8, "knows_layout", lambda: False)
    monkeypatch.setattr(int8, "pack", lambda integers: integers)
    monkeypatch.setattr(int8, "_multiply", multiply)
