"""Packed matrices: what quantizing leaves, and products against exact sums."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paliglass.fast.int8 import quantize_rows
from paliglass.fast.layout import CODES
from paliglass.fast.matrix import (
    PackedMatrix,
    arranged,
    geglu,
    integers,
    multiply,
    quantize,
)
from paliglass.fast.threads import Team
from tests.fast.emulation import rounded, weights

EMPTY = np.zeros(1, dtype=np.int64)
SHAPES = [(16, 64), (48, 96), (130, 200), (1, 1), (33, 2048)]
COUNTS = [1, 2, 3, 4, 5, 8, 9, 33]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Within a share of the largest number."""
    assert (found.double() - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_rows_are_within_half_a_step(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = normal(*shape, dtype=dtype)
    weight[-1] = 0 if len(weight) > 1 else 1
    matrix = quantize(weight, 8)
    found, scales = integers(matrix)
    assert found.shape == shape
    off = (found * scales[:, None] - weight.float()).abs()
    assert (off <= 0.5001 * scales[:, None]).all()
    assert (found.int() - quantize_rows(weight)[0]).abs().max() <= 1  # the other side of a tie


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_takes_the_nearest_code_and_a_good_scale(dtype: torch.dtype) -> None:
    weight = normal(130, 200, dtype=dtype)
    weight[3, 32:64] = 0
    matrix = quantize(weight, 4)
    found, scales = integers(matrix)
    steps = scales.repeat_interleave(32, 1)[:, :200]
    codes = torch.tensor(CODES)
    off = (found * steps - weight.float()).abs()
    best = (codes * steps[..., None] - weight.float()[..., None]).abs().amin(-1)
    assert (off <= best + 1.01 * steps.abs()).all()  # a weight is rounded to a step first
    assert (off[3, 32:64] == 0).all()
    error = float(off.norm() / weight.float().norm())
    assert error < 0.075  # −8 … 7 with a searched scale leave 0.081, with max / 8 0.09
    plain = normal(130, 192, dtype=dtype).float().unflatten(1, (-1, 32))
    plain_scale = plain.abs().amax(-1, keepdim=True) / 8
    plain_error = float(((plain / plain_scale).round().clamp(-8, 7) * plain_scale - plain).norm())
    assert error < 0.9 * plain_error / float(plain.norm())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
def test_products_are_exact_but_for_the_roundings(
    bits: int, shape: tuple[int, int], count: int
) -> None:
    matrix = quantize(normal(*shape), bits)
    x = normal(count, shape[1], seed=1)
    assert_near(multiply(x, matrix), rounded(x, bits) @ weights(matrix).T, 5e-7)


@pytest.mark.parametrize("bits", [8, 4])
def test_extremes_do_not_overflow(bits: int) -> None:
    weight = torch.ones(16, 4096)
    weight[1] = -1
    matrix = quantize(weight, bits)
    x = torch.ones(8, 4096)
    x[1::2] = -1
    assert_near(multiply(x, matrix), rounded(x, bits) @ weights(matrix).T, 5e-7)
    assert_near(multiply(x, matrix), x.double() @ weight.double().T, 0.01)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 5, 33])
def test_bfloat16_comes_out_as_it_went_in_with_a_bias(bits: int, count: int) -> None:
    matrix, bias = quantize(normal(130, 200), bits), normal(130, seed=2)
    x = normal(2, count, 200, seed=1, dtype=torch.bfloat16)
    found = multiply(x, matrix, bias)
    assert found.dtype == torch.bfloat16
    assert found.shape == (2, count, 130)
    expected = rounded(x, bits) @ weights(matrix).T + bias
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-8, atol=1e-5)
    assert_near(multiply(x.float(), matrix, bias), expected, 5e-7)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_token_alone_is_a_token_among_others(bits: int) -> None:
    matrix, x = quantize(normal(130, 200), bits), normal(19, 200, seed=1)
    together = multiply(x, matrix)
    for count in (1, 2, 3, 5, 8):
        assert torch.equal(multiply(x[:count], matrix), together[:count])


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (4, 8), (8, 4)])
@pytest.mark.parametrize("count", [1, 3, 21])
def test_geglu_is_its_three_products(bits: tuple[int, int], count: int) -> None:
    gate, up = (quantize(normal(200, 96, seed=i) / 10, bits[0]) for i in (0, 1))
    down = quantize(normal(96, 200, seed=2), bits[1])
    x = normal(count, 96, seed=3)
    found = geglu(x, gate, up, down)
    hidden = F.gelu(multiply(x, gate), approximate="tanh") * multiply(x, up)
    off = (found - multiply(hidden, down)).abs() / found.abs().max()
    # GELU's last bit may decide how a number is rounded.
    assert off.median() < 1e-6
    assert off.max() < 0.01


def test_int8_integers_are_taken_as_they_are() -> None:
    rows, scales = quantize_rows(normal(130, 200))
    matrix = PackedMatrix.of_bytes(8, 130, 200, arranged(rows))
    matrix.scales[:130] = scales
    found, found_scales = integers(matrix)
    assert torch.equal(found, rows)
    assert torch.equal(found_scales, scales)
    x = normal(3, 200, seed=1)
    assert_near(multiply(x, matrix), rounded(x, 8) @ (rows * scales[:, None]).double().T, 5e-7)


def test_callers_in_several_threads_wait_for_each_other() -> None:
    matrix = quantize(normal(512, 256), 4)
    inputs = [normal(8, 256, seed=i) for i in range(4)]
    expected = [multiply(x, matrix) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(
            i for _ in range(50) if not torch.equal(multiply(inputs[i], matrix), expected[i])
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.usefixtures("team")
def test_threads_share_the_work(bits: int) -> None:
    matrix = quantize(normal(1000, 600), bits)
    x = normal(70, 600, seed=1)
    for _ in range(20):
        assert_near(multiply(x, matrix), rounded(x, bits) @ weights(matrix).T, 5e-7)


def test_a_team_takes_as_many_threads_as_the_work_is_worth() -> None:
    team, seen = Team(4), set[tuple[int, int]]()
    team.run(lambda thread, threads, sync, job: seen.add((thread, threads)), 0, EMPTY, 1000)
    assert seen == {(0, 1)}
