"""Matrices that the processor cannot multiply as they are, against the plain modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paliglass import load
from paliglass.fast import int8, widened
from paliglass.fast.attention import ExplicitAttention
from paliglass.fast.packed import can_pack
from paliglass.fast.widened import WidenedAttention, WidenedLinear, widen, widened_linear
from paliglass.layers.attention import Attention, attend_reference

DTYPES = [torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 4), (2, 33)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_rounded_once(
    dtype: torch.dtype, shape: tuple[int, int], biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "AT_ONCE", 1000)  # several pieces, the last one shorter
    plain = nn.Linear(70, 130, bias=biased, dtype=dtype)
    layer = WidenedLinear(plain)
    x = normal(*shape, 70, dtype=dtype)
    expected = x.double() @ plain.weight.double().T + (plain.bias.double() if biased else 0)
    with torch.no_grad():
        found = layer(x)
    assert found.shape == (*shape, 130)
    assert found.dtype == dtype
    share = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * share, atol=1e-5)


def test_integers_take_a_scale() -> None:
    weight = torch.randint(-127, 128, (40, 64), dtype=torch.int8)
    x, scale, bias = normal(5, 64), normal(40, seed=1), normal(40, seed=2)
    expected = x @ (weight * scale[:, None]).T + bias
    torch.testing.assert_close(
        widened_linear(x, weight, bias, scale), expected, rtol=1e-5, atol=1e-3
    )


def test_with_gradients_it_is_the_plain_layer() -> None:
    plain = nn.Linear(64, 32, dtype=torch.bfloat16)
    x = normal(9, 64, dtype=torch.bfloat16).requires_grad_()
    WidenedLinear(plain)(x).float().square().sum().backward()
    found, x.grad = (x.grad, plain.weight.grad), None
    plain.weight.grad = None
    plain(x).float().square().sum().backward()
    assert all(torch.equal(*pair) for pair in zip(found, (x.grad, plain.weight.grad), strict=True))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tokens", [1, 6])
def test_attention_is_rounded_once(softcap: float | None, tokens: int) -> None:
    query, key, value = (
        normal(2, heads, count, 16, seed=heads, dtype=torch.bfloat16)
        for heads, count in ((4, tokens), (2, 9), (2, 9))
    )
    mask = torch.ones(2, 1, tokens, 9, dtype=torch.bool)
    mask[1, ..., :3] = False
    found = WidenedAttention(Attention(0.25, softcap))(query, key, value, mask)
    wide = (t.double() for t in (query, key, value))
    expected = attend_reference(*wide, mask, 0.25, softcap)[0].transpose(1, 2).flatten(2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-8, atol=1e-3)


def test_what_is_loaded_without_a_kernel_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "has_kernel", lambda dtype: dtype == torch.float32)
    model = load("mini", device="cpu").model
    kinds = {type(module) for module in model.modules()}
    assert {WidenedLinear, WidenedAttention} <= kinds
    assert nn.Linear not in kinds
    attentions = [m for name, m in model.named_modules() if name.endswith("self_attn.attention")]
    assert {type(module) for module in attentions} == {WidenedAttention}
    # The head still is the embedding, and the names are the checkpoint's.
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    assert (
        model.state_dict().keys()
        == load("mini", device="cpu", fast=False).model.state_dict().keys()
    )
    assert not any(
        isinstance(module, WidenedLinear | WidenedAttention)
        for module in load("mini", device="cpu", dtype="float32").model.modules()
    )


@pytest.mark.skipif(not int8.has_kernel(), reason="no int8 kernel here")
def test_int8_keeps_its_attention_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"input_ids": torch.tensor([[2, 5, 9, 4]]), "attention_mask": torch.ones(1, 4)}
    plain = load("mini", device="cpu", quantize="int8").model
    monkeypatch.setattr(widened, "has_kernel", lambda dtype: dtype == torch.float32)
    model = load("mini", device="cpu", quantize="int8").model
    attentions = [m for m in model.modules() if isinstance(m, WidenedAttention)]
    assert {type(module.attention) for module in attentions} == {ExplicitAttention}
    with torch.no_grad():
        found, expected = (m(**inputs).logits.float() for m in (model, plain))
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_where_there_is_a_kernel_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "has_kernel", lambda _: True)
    layers = nn.ModuleList([nn.Linear(8, 8, dtype=torch.bfloat16)])
    widen(layers, torch.bfloat16)
    assert type(layers[0]) is nn.Linear


@pytest.mark.parametrize(("wide", "native"), [(True, False), (True, True), (False, False)])
def test_avx512_needs_bfloat16_instructions(
    wide: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: wide)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    onednn_says_so = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert can_pack() == (onednn_says_so and (native or not wide))
