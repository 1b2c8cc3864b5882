"""The int8 blocks against the plain modules over the same int8 matrices."""

from __future__ import annotations

import pytest
import torch
from tests.unit.test_int8 import normal
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast import int8, int8_blocks
from paliglass.fast.int8 import Int8Linear, QuantizedActivation
from paliglass.fast.int8_blocks import (
    Int8GeGLU,
    Int8GeluMLP,
    Int8LayerNorm,
    Int8RMSNorm,
    gelu_tanh_,
)
from paliglass.layers.norms import RMSNorm

TOKENS = [1, 2, 5, 300]


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few numbers are converted at once that 300 tokens take several rounds and parts."""
    monkeypatch.setattr(int8, "_AT_ONCE", 10_000)
    monkeypatch.setattr(int8_blocks, "MOST_TOKENS", 240)


def layer(rows: int, columns: int, seed: int, bias: Tensor | None = None) -> Int8Linear:
    given = None if bias is None else nn.Parameter(bias, requires_grad=False)
    made = Int8Linear.quantize(normal(rows, columns, seed=seed) / columns**0.5, given)
    made.pack()
    return made


def off(found: Tensor, expected: Tensor) -> float:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_gelu_is_torchs() -> None:
    x = torch.linspace(-30, 30, 4001)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(gelu_tanh_(x.clone()), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_norms_for_int8_are_the_norms_quantised(tokens: int, dtype: torch.dtype) -> None:
    x = 3 * normal(1, tokens, 4160, seed=1, dtype=dtype)
    rms, layer_norm = RMSNorm(4160).to(dtype), nn.LayerNorm(4160, dtype=dtype)
    for norm, quantising in ((rms, Int8RMSNorm), (layer_norm, Int8LayerNorm)):
        nn.init.normal_(norm.weight)
        before = x.clone()
        found = quantising(norm)(x)
        assert torch.equal(x, before)
        assert quantising(norm).state_dict().keys() == norm.state_dict().keys()
        assert (found.shape, found.dtype) == (x.shape, dtype)
        steps, scales = found.integers.double() - int8.ZERO_POINT, found.scales
        if isinstance(scales, float):
            numbers = scales * (steps[:1] + 256 * steps[1:2])
        else:
            numbers = steps * scales.double()
        expected = norm.double()(x.double())[0]
        norm.to(dtype)
        step = expected.abs().amax(-1, keepdim=True) / 127
        limit = 0.51 if dtype == torch.float32 else 1.0  # of a LayerNorm's output in bfloat16
        assert ((numbers - expected).abs() <= limit * step).all()


# Rounding to int8 once more, elsewhere, moves a product by about a step in 127.
LIMITS = [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)]


@pytest.mark.usefixtures("int8_kernel")
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
def test_the_decoders_mlp(tokens: int, dtype: torch.dtype, limit: float) -> None:
    gate, up, down = layer(4160, 96, 0), layer(4160, 96, 1), layer(96, 4160, 2)
    x = normal(1, tokens, 96, seed=3, dtype=dtype)
    expected = down(F.gelu(gate(x), approximate="tanh") * up(x))
    block = Int8GeGLU(gate, up, down)
    assert off(block(x), expected) < limit
    assert torch.equal(block(QuantizedActivation.of(x)), block(x))


@pytest.mark.usefixtures("int8_kernel")
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("dtype", "limit"), LIMITS)
@pytest.mark.parametrize("biased", [False, True])
def test_the_towers_mlp(tokens: int, dtype: torch.dtype, limit: float, biased: bool) -> None:
    bias = normal(4160, seed=4, dtype=dtype) if biased else None
    fc1, fc2 = layer(4160, 96, 0, bias), layer(96, 4160, 1, normal(96, seed=5, dtype=dtype))
    x = normal(tokens, 96, seed=3, dtype=dtype)
    inner = F.gelu(fc1(x), approximate="tanh")
    exact = inner.double() @ (fc2.integers(torch.arange(96)) * fc2.scale[:, None]).double().T
    exact = (exact + fc2.bias.double()).to(dtype)
    found, plain = off(Int8GeluMLP(fc1, fc2)(x), exact), off(fc2(inner), exact)
    assert found < max(limit, 8e-3)  # what rounding to int8 costs
    # Finer than what knows nothing of GELU's lowest value; a single token is exact either way.
    assert tokens == 1 or not biased or dtype == torch.bfloat16 or found < 0.7 * plain
