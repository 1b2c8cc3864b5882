"""Packed bfloat16 matrices against plain linear layers."""

from __future__ import annotations

import copy
import os
import threading
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast import packed
from paliglass.fast.packed import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(), reason="no kernel for packed bfloat16 here")


def matrix(rows: int = 300, columns: int = 200, seed: int = 0) -> nn.Parameter:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return nn.Parameter(weight.bfloat16(), requires_grad=False)


def test_kept_kernels_are_bounded_unless_somebody_has_said_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    pack_linears(nn.Sequential())
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 31, 32, 100])
def test_products_are_within_bfloat16_rounding(tokens: int) -> None:
    weight = matrix()
    x = matrix(tokens, 200, seed=1).data
    expected = x.double() @ weight.double().T
    layer = PackedLinear(weight)
    with torch.inference_mode():
        first = layer(x)
        again = layer(x[None])[0]
    assert (layer.packed is not None) == (tokens < packed.MANY_TOKENS)
    for found in (first, again):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)


def test_the_first_few_tokens_pack_and_the_matrix_can_be_had_back() -> None:
    weight = matrix()
    layer = PackedLinear(weight)
    assert list(layer.state_dict()) == ["weight"]
    with torch.inference_mode():
        layer(torch.zeros(100, 200, dtype=torch.bfloat16))
        assert layer.packed is None
        layer(torch.zeros(1, 200, dtype=torch.bfloat16))
    assert layer.packed is not None
    assert layer.weight is None
    assert torch.equal(layer.state_dict()["weight"], weight)
    x = torch.randn(2, 200).bfloat16().requires_grad_()
    layer(x).float().sum().backward()
    expected = torch.autograd.grad(F.linear(x, weight).float().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_a_copied_layer_is_as_before_it_was_packed() -> None:
    layer = PackedLinear(matrix())
    x = matrix(1, 200, seed=1).data
    with torch.inference_mode():
        expected = layer(x)
    other = copy.deepcopy(nn.ModuleList([layer]))[0]
    assert other.packed is None
    assert layer.weight is None
    assert torch.equal(other.weight, matrix())
    with torch.inference_mode():
        assert torch.equal(other(x), expected)
        assert torch.equal(layer(x), expected)


def test_threads_that_meet_a_matrix_together_have_it_packed_once() -> None:
    layer = PackedLinear(matrix())
    x = matrix(1, 200, seed=1).data
    found: list[Tensor] = []
    inside, reorder = threading.Semaphore(0), torch.ops.mkldnn._reorder_linear_weight
    threads: list[threading.Thread] = []

    def work() -> None:
        with torch.inference_mode():
            found.append(layer(x))

    def slow(weight: Tensor, tokens: int) -> Tensor:
        inside.release()
        if len(threads) == 1:  # another comes before this one is through
            threads.append(threading.Thread(target=work))
            threads[1].start()
            inside.acquire()
            inside.acquire(timeout=0.3)
        return reorder(weight, tokens)

    with patch.object(torch.ops.mkldnn, "_reorder_linear_weight", side_effect=slow) as packs:
        threads.append(threading.Thread(target=work))
        threads[0].start()
        threads[0].join()
        threads[1].join()
    assert packs.call_count == 1
    assert len(found) == 2
    assert torch.equal(*found)


def test_only_large_bfloat16_layers_without_bias_are_packed() -> None:
    model = nn.ModuleDict(
        {
            "large": nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16),
            "biased": nn.Linear(1024, 1024, dtype=torch.bfloat16),
            "small": nn.Linear(64, 64, bias=False, dtype=torch.bfloat16),
            "float32": nn.Linear(1024, 1024, bias=False),
        }
    )
    pack_linears(model)
    assert [name for name, m in model.items() if isinstance(m, PackedLinear)] == ["large"]
