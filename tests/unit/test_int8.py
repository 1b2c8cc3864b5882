"""int8 layers against the same sums in exact integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast import int8, onednn
from paliglass.fast.int8 import (
    Int8Embedding,
    Int8Head,
    Int8Linear,
    quantize_rows,
    quantize_token,
    quantize_tokens,
)
from paliglass.fast.matrix import arranged

needs_kernel = pytest.mark.skipif(not int8.has_kernel(), reason="no int8 kernel here")
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def as_numbers(integers: Tensor, scale: float) -> Tensor:
    """What `quantize_token` made of a token, 1 × K in float64."""
    steps = integers.double() - int8.ZERO_POINT
    return scale * (steps[:1] + 256 * steps[1:2])


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the two roundings leave, multiplied in integers and scaled in float64."""
    integers, scales = quantize_rows(weight)
    if len(x) == 1:
        y = as_numbers(*quantize_token(x)) @ integers.double().T * scales.double()
    else:
        tokens, token_scales = quantize_tokens(x)
        product = (tokens.long() - int8.ZERO_POINT) @ integers.long().T
        y = product.double() * token_scales.double() * scales.double()
    return y if bias is None else y + bias.double()


def test_rows_are_within_half_a_step() -> None:
    weight = torch.cat((normal(30, 70) * torch.logspace(-8, 3, 30)[:, None], torch.zeros(1, 70)))
    integers, scales = quantize_rows(weight)
    assert integers.abs().max() == int8.LARGEST
    off = (integers * scales[:, None] - weight).abs()
    assert (off <= 0.5001 * scales[:, None]).all()
    assert (integers[-1] == 0).all()
    assert scales[-1] == pytest.approx(1 / 127)


def test_large_matrices_are_converted_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_AT_ONCE", 10_000)
    weight = normal(300, 1000)
    assert len(list(int8._chunks(weight))) > 1
    integers, scales = quantize_rows(weight)
    again = [quantize_rows(row[None]) for row in weight[::50]]
    assert torch.equal(integers[::50], torch.cat([row for row, _ in again]))
    assert torch.equal(scales[::50], torch.cat([scale for _, scale in again]))


@pytest.mark.usefixtures("int8_kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 33])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("packed", [True, False])
def test_products_are_those_of_the_integers(
    packed: bool, dtype: torch.dtype, tokens: int, biased: bool
) -> None:
    weight, x = normal(130, 200, dtype=dtype), normal(tokens, 200, seed=1, dtype=dtype)
    bias = nn.Parameter(normal(130, seed=2, dtype=dtype), requires_grad=False) if biased else None
    layer = Int8Linear.quantize(weight, bias)
    assert layer.weight is not None
    if not packed:  # the tokens keep their own precision
        y = F.linear(x.double(), (layer.weight * layer.scale[:, None]).double())
        expected = y if bias is None else y + bias.double()
    else:
        layer.pack()
        assert layer.packed is not None
        expected = exact(x, weight, bias)
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == dtype
    # Before the bias is added a bfloat16 is rounded already, to 8 bits of what may then cancel.
    share = 1e-6 if dtype == torch.float32 else 2.0**-8
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=share, atol=share * largest)


@pytest.mark.usefixtures("int8_kernel")
def test_a_single_token_is_as_good_as_exact() -> None:
    weight, x = normal(130, 200), normal(33, 200, seed=1)
    layer = Int8Linear.quantize(weight)
    assert layer.weight is not None
    expected = x @ (layer.weight * layer.scale[:, None]).T
    layer.pack()
    alone = torch.cat([layer(row[None]) for row in x])
    together = layer(x)
    assert (alone - expected).norm() < 1e-4 * expected.norm()
    assert (together - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.usefixtures("int8_kernel")
def test_shape_and_zeros() -> None:
    layer = Int8Linear.quantize(normal(64, 64))
    layer.pack()
    assert layer(normal(2, 3, 64)).shape == (2, 3, 64)
    assert (layer(torch.zeros(1, 1, 64)) == 0).all()
    one = normal(1, 64)
    before = one.clone()
    layer(one)
    assert torch.equal(one, before)


@needs_kernel
@pytest.mark.skipif(not int8.knows_layout(), reason="oneDNN packs otherwise here")
@pytest.mark.parametrize(
    "shape", [(64, 64), (130, 200), (1, 8), (63, 129), (320, 128), (2048, 129), (2047, 2049)]
)
def test_onednn_reads_panels_where_they_lie(shape: tuple[int, int]) -> None:
    tokens = quantize_tokens(normal(5, shape[1]))[0]
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        integers = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        memory = arranged(integers)
        packed = onednn.view(memory, *shape)
        assert torch.ops.mkldnn.data_ptr(packed) == memory.data_ptr()
        found = onednn.multiply_packed(tokens, packed, torch.ones(shape[0]), torch.float32)
        expected = (tokens.long() - int8.ZERO_POINT) @ integers.long().T
        assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("shape", [(150, 100), (64, 64), (1, 8)])
def test_rows_are_read_out_of_panels(shape: tuple[int, int]) -> None:
    layer = Int8Linear.quantize(normal(*shape))
    assert layer.weight is not None
    integers, ids = layer.weight, torch.tensor([[0, shape[0] - 1], [shape[0] // 2, 0]])
    layer.weight = arranged(integers).view(torch.int8)  # as a folder holds them
    assert layer.weight.shape == layer.packed_shapes["weight"]
    layer.unpack()
    assert torch.equal(layer.weight, integers)
    layer.pack()
    assert torch.equal(layer.integers(ids), integers[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_is_quantised_as_several_are_and_finer(dtype: torch.dtype) -> None:
    x = normal(1, 300, dtype=dtype)
    alone, scale = quantize_token(x)
    among, scales = quantize_tokens(x)
    assert alone.shape == (int8.FEWEST_TOKENS, 300)
    assert (alone[1].int() - among[0].int()).abs().max() <= 1
    assert 256 * scale == pytest.approx(float(scales), rel=2.0**-8)
    off = (as_numbers(alone, scale) - x.double()).abs()
    assert off.max() <= 0.502 * scale
    assert (as_numbers(*quantize_token(0 * x)) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_hardly_go_below_0_are_quantised_finer(dtype: torch.dtype) -> None:
    highest = torch.logspace(-2, 3, 300)[:, None]  # some scales are rounded up, others down
    x = (torch.linspace(0, 1, 100) * (highest + 0.17) - 0.17).to(dtype)
    integers, scales = quantize_tokens(x, least=-0.1701)
    found = (integers.double() - int8.LOW_ZERO) * scales.double()
    assert ((found - x.double()).abs() <= 0.51 * scales.double()).all()
    plain = quantize_tokens(x)[1]
    assert (scales < 0.7 * plain)[highest >= 1].all()


@pytest.mark.usefixtures("int8_kernel")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_and_head_share_one_matrix(packed: bool, dtype: torch.dtype) -> None:
    weight = normal(150, 96)
    table = Int8Embedding(*quantize_rows(weight))
    table.dtype = dtype
    head = Int8Head(table)
    if packed:
        table.pack()
    assert list(head.parameters()) == list(head.buffers()) == []
    rows = table(torch.tensor([[3, 149]]))
    assert rows.dtype == dtype
    torch.testing.assert_close(rows[0].float(), weight[[3, 149]], atol=0.03, rtol=0.02)
    logits = head(normal(2, 96, seed=1, dtype=dtype))
    assert logits.shape == (2, 150)
    expected = normal(2, 96, seed=1) @ weight.T
    assert (logits.float() - expected).norm() < 0.02 * expected.norm()


def test_without_a_kernel_the_integers_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("has_kernel", "is_available"):
        monkeypatch.setattr(int8, name, lambda: False)
    layer = Int8Linear.quantize(normal(130, 200))
    layer.pack()
    assert layer.packed is None
    assert layer.weight is not None
    x = normal(7, 200, seed=1)
    expected = x @ normal(130, 200).T
    assert (layer(x) - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("columns", [192, 200])  # what torch's kernel can read, and cannot
@pytest.mark.parametrize("tokens", [1, 8, 9])
def test_few_tokens_without_a_kernel(columns: int, tokens: int) -> None:
    layer = Int8Linear.quantize(normal(130, columns))
    assert layer.weight is not None
    x = normal(tokens, columns, seed=1, dtype=torch.bfloat16)
    expected = x.double() @ (layer.weight * layer.scale[:, None]).double().T
    with torch.no_grad():
        found = layer(x[None])[0]
    assert found.dtype == torch.bfloat16
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-7, atol=2.0**-9 * largest)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


@needs_kernel
def test_without_the_known_layout_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("knows_layout", "is_available"):
        monkeypatch.setattr(int8, name, lambda: False)
    layer = Int8Linear.quantize(normal(130, 200))
    layer.pack()
    assert layer.packed is not None
    assert layer.weight is not None
    assert layer.integers(torch.tensor([7])).shape == (1, 200)
