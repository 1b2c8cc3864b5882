"""Fewer kernels, the same numbers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from paliglass.fast import cuda_graph, fused
from paliglass.fast.fused import FusedAttention, FusedRMSNorm
from paliglass.layers.attention import Attention
from paliglass.layers.norms import RMSNorm
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

decoders = pytest.mark.parametrize(
    "decoder",
    [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 4}, GEMMA2],
    ids=["gemma MQA", "gemma GQA", "gemma MHA", "gemma2"],
)


def fused_copy(model: PaliGemmaForConditionalGeneration) -> PaliGemmaForConditionalGeneration:
    fast = copy.deepcopy(model)
    fused.replace(fast)
    return fast


@torch.no_grad()
def run(model: PaliGemmaForConditionalGeneration) -> Tensor:
    """What comes out of a padded prompt and some steps of one and several tokens."""
    batch = make_batch(model.config, [3, 9, 5])
    del batch["token_type_ids"]
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    cache = model.new_cache(3, 8)
    out = [model.prefill(**batch, kv_cache=cache, last_only=True)[:, None]]
    for count in (1, 3, 1):
        out.append(model.extend(torch.full((3, count), 7 + count), cache))
    return torch.cat(out, 1)


@decoders
def test_float32_is_the_modules_own(decoder: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(**decoder))
    mine, plain = run(fused_copy(model)), run(model)
    assert (mine - plain).norm() < 2e-6 * plain.norm()


@decoders
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_as_near_to_float32_as_the_modules(
    decoder: dict[str, Any], dtype: torch.dtype
) -> None:
    model = tiny_model(tiny_config(**decoder), std=0.1)
    truth = run(model)
    model.to(dtype)
    mine, plain = run(fused_copy(model)), run(model)
    assert mine.dtype == dtype
    assert (mine - truth).norm() < 1.2 * (plain - truth).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_norm_is_rounded_once(dtype: torch.dtype) -> None:
    norm = RMSNorm(256).to(dtype)
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 7, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    mine, plain = FusedRMSNorm(norm)(x), norm(x)
    assert mine.dtype == dtype
    assert (mine.float() - plain.float()).abs().max() <= torch.finfo(dtype).eps * plain.abs().max()


@torch.no_grad()
def test_a_norm_has_the_gain_of_its_weights_whatever_is_done_to_them() -> None:
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    model = tiny_model()
    fast, other = fused_copy(model), tiny_model(seed=1).state_dict()
    changes: list[Callable[[torch.nn.Module], object]] = [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(torch.float32),
        lambda m: m.load_state_dict(other),
    ]
    for change in changes:
        for one in (model, fast):
            change(one)
        norm, plain = fast.language_model.model.norm, model.language_model.model.norm
        assert norm.gain.dtype == torch.float32
        torch.testing.assert_close(norm(x), plain(x))


def test_a_checkpoints_keys_still_fit() -> None:
    model = tiny_model()
    assert fused_copy(model).state_dict().keys() == model.state_dict().keys()
    kinds = {type(module).__name__ for module in fused_copy(model).modules()}
    assert {"FusedRMSNorm", "FusedAttention", "FusedGemmaAttention"} < kinds
    assert not {"RMSNorm", "Attention", "GemmaAttention"} & kinds


def test_one_query_takes_a_mask_of_what_may_be_seen_or_what_is_added() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 1, 8, generator=generator)
    key, value = torch.randn(2, 2, 3, 5, 8, generator=generator)
    seen = torch.rand(2, 1, 1, 5, generator=generator) < 0.6
    seen[..., 0] = True
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    for softcap in (None, 2.0):
        attention = FusedAttention(0.5, softcap)
        assert torch.equal(attention(query, key, value, seen), attention(query, key, value, bias))


class Calls(TorchDispatchMode):
    """Those that start a kernel on a GPU, by name."""

    VIEWS = frozenset(
        "view _unsafe_view transpose slice unsqueeze select expand chunk flatten unflatten reshape "
        "detach".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.found[name] += name not in self.VIEWS
        return func(*args, **(kwargs or {}))


def kernels_a_layer(change: Callable[[PaliGemmaForConditionalGeneration], object]) -> int:
    """Of a token in bfloat16."""
    counts = []
    for layers in (1, 2):
        model = tiny_model(tiny_config(num_hidden_layers=layers)).to(torch.bfloat16)
        change(model)
        batch = make_batch(model.config, [3])
        cache = model.new_cache(1, 64)
        pixels = batch["pixel_values"].to(torch.bfloat16)
        with torch.inference_mode():  # a call is one there, not those that it is made of
            model.prefill(batch["input_ids"], pixels, kv_cache=cache)
            model.extend(torch.tensor([[5]]), cache)
            with Calls() as calls:
                model.extend(torch.tensor([[5]]), cache)
        counts.append(calls.found.total())
    return counts[1] - counts[0]


def record_nothing(
    step: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], object], Tensor]:
    out = step()
    return lambda: out.copy_(step()), out


def test_a_layer_takes_fewer_kernels() -> None:
    """With what attention is made of on a GPU, where no kernel takes a mask and shared keys."""

    def graphed(model: PaliGemmaForConditionalGeneration) -> None:
        fused.replace(model)
        cuda_graph.replace(model)

    query, key = torch.zeros(1, 4, 1, 8).bfloat16(), torch.zeros(1, 1, 5, 8).bfloat16()
    mask = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Calls() as inside:
        Attention(0.5)(query, key, key, mask)
    plain = kernels_a_layer(lambda _: None) - 1 + inside.found.total()
    fewer = kernels_a_layer(fused.replace)
    with patch.multiple(cuda_graph, record=record_nothing, DEVICES=("cpu",)):
        recorded = kernels_a_layer(graphed)
    print(f"calls of a layer: plain {plain}, fused {fewer}, recorded {recorded}")
    assert fewer < 0.6 * plain
    assert recorded < 0.5 * plain
