"""Whole models that decode compiled: as the modules do, alone and in company, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paliglass.checkpoints.folder import load_model
from paliglass.checkpoints.saving import save_folder
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.fast import accelerate, compiled_model, explain, quantized
from paliglass.fast.compiled_model import CompiledCausalLM, CompiledPaliGemma
from paliglass.fast.int4 import Int4Linear
from paliglass.fast.int8 import Int8Linear
from paliglass.fast.matrix import PackedMatrix
from paliglass.generation import RunningBatch
from paliglass.layers.kv_cache import KVCache
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model, worded_config
from tests.unit.test_generation import REQUESTS, answers, requests_of

DECODERS = {"gemma": {}, "gemma2": GEMMA2}
METHODS = ["int8", "int4"]


def compiled(
    method: str, decoder: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> PaliGemmaForConditionalGeneration:
    model = tiny_model(tiny_config(**(decoder or {})), std=0.1).to(dtype)
    accelerate(model, method)
    return model


def filled(model: PaliGemmaForConditionalGeneration, rows: int = 3) -> tuple[KVCache, Tensor]:
    cache = model.new_cache(rows, 40)
    batch = make_batch(model.config, [3 + 2 * i for i in range(rows)])
    del batch["token_type_ids"]
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    return cache, model.prefill(**batch, kv_cache=cache, last_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DECODERS)
@torch.inference_mode()
def test_it_is_what_the_modules_compute(name: str, method: str, dtype: torch.dtype) -> None:
    model = compiled(method, DECODERS[name], dtype)
    assert isinstance(model, CompiledPaliGemma)
    decoder = model.language_model
    assert isinstance(decoder, CompiledCausalLM)
    cache, _ = filled(model)
    other = copy.deepcopy(cache)
    ids, mask = torch.tensor([[5, 7], [9, 4], [3, 0]]), torch.tensor([[1, 1], [1, 1], [1, 0]])
    hidden = model.extend(ids, cache, mask)
    assert hidden.dtype == dtype
    expected = PaliGemmaForConditionalGeneration.extend(model, ids, other, mask)
    assert torch.equal(cache.lengths, other.lengths)
    kept = mask.bool()
    off = (hidden - expected)[kept].norm() / expected[kept].norm()
    assert off < 0.03
    words = torch.tensor([3, 77, 4, 200])
    last = expected[:, 0]
    for some in (None, words):
        logits = decoder.logits(last, some)
        plain = super(CompiledCausalLM, decoder).logits(last, some)
        assert (logits - plain).norm() < 0.03 * plain.norm()
    assert torch.equal(decoder.logits(last)[:, words], decoder.logits(last, words))
    assert torch.equal(decoder.logits(last[:, None])[:, 0], decoder.logits(last))


def test_the_layers_are_of_the_bits_that_were_measured_best() -> None:
    model = compiled("int4")
    kinds = {name: type(module) for name, module in model.named_modules()}
    in_int4 = {name for name, kind in kinds.items() if kind is Int4Linear}
    layers = range(1, model.config.text_config.num_hidden_layers)
    parts = ("gate_proj", "up_proj", "down_proj")
    assert in_int4 == {f"language_model.model.layers.{i}.mlp.{p}" for i in layers for p in parts}
    assert nn_linears(model) == 0
    assert kinds["vision_tower.vision_model.encoder.layers.0.mlp.fc1"] is Int8Linear


def nn_linears(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.Linear) for module in model.modules())


@settings(max_examples=20)
@given(
    some=st.lists(REQUESTS, min_size=2, max_size=7),
    max_rows=st.integers(1, 4),
    gemma2=st.booleans(),
    method=st.sampled_from(METHODS),
)
def test_a_request_alone_is_the_request_in_any_company(
    some: list[tuple[Any, ...]], max_rows: int, gemma2: bool, method: str
) -> None:
    """Prompts are float32's and run one by one here, since padding rounds them otherwise: every
    token is the kernels'.
    """
    model = tiny_model(worded_config(**(GEMMA2 if gemma2 else {})), std=0.3)
    decoding = copy.deepcopy(model)
    accelerate(decoding, method)
    assert isinstance(decoding, CompiledPaliGemma)
    # The plain prompt, the compiled rest.
    model.__class__ = CompiledPaliGemma
    plain, fast = model.language_model, decoding.language_model
    assert isinstance(fast, CompiledCausalLM)
    plain.__class__ = CompiledCausalLM
    assert isinstance(plain, CompiledCausalLM)
    plain.compiled, plain.hooks = fast.compiled, fast.hooks
    requests = requests_of(some)
    prefill = RunningBatch._prefill

    def one_by_one(batch: RunningBatch, rows: Sequence[Any]) -> None:
        for row in rows:
            prefill(batch, [row])

    with patch.object(RunningBatch, "_prefill", one_by_one):
        for request, in_company in zip(requests, answers(model, requests, max_rows), strict=True):
            [alone] = answers(model, [request])
            assert in_company.ids == alone.ids
            assert in_company.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
            assert in_company.finish_reason == alone.finish_reason


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_who_looks_at_modules_sees_them_run(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(method)
    cache, last = filled(model)
    ids, seen = torch.tensor([[5], [7], [9]]), list[object]()
    layer = model.language_model.model.layers[1]
    model.extend(ids, cache)
    assert not seen
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    model.extend(ids, cache)
    assert len(seen) == 1
    handle.remove()
    decoder = model.language_model
    monkeypatch.setattr(CompiledCausalLM, "compiled", None, raising=False)
    del decoder.compiled
    with pytest.raises(AttributeError):
        model.extend(ids, cache)
    decoder.train()
    model.extend(ids, cache)  # in training the modules run
    decoder.logits(last)


def test_float16_goes_through_the_modules() -> None:
    assert type(compiled("int8", dtype=torch.float16)) is PaliGemmaForConditionalGeneration


@pytest.mark.parametrize("name", DECODERS)
@torch.inference_mode()
def test_an_int4_folder_is_the_model_that_was_saved(tmp_path: Path, name: str) -> None:
    model = compiled("int4", DECODERS[name], torch.bfloat16)
    save_folder(model, tmp_path / "int4")
    again = load_model(tmp_path / "int4", "cpu", accelerate=accelerate)
    assert isinstance(again, CompiledPaliGemma)
    for one in (model, again):
        cache, last = filled(one)
        hidden = one.extend(torch.tensor([[5], [7], [9]]), cache)
        logits = one.language_model.logits(hidden[:, -1])
        if one is model:
            expected = last, hidden, logits
    for a, b in zip(expected, (last, hidden, logits), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="matrices are int4"):
        load_model(tmp_path / "int4", "cpu")
    with pytest.raises(CheckpointError, match="matrices are int4 already; int8 has to be made"):
        load_model(tmp_path / "int4", "cpu", accelerate=accelerate, quantize="int8")


def test_quantizing_while_reading_is_quantizing_afterwards(tmp_path: Path) -> None:
    plain = tiny_model(std=0.1)
    save_folder(plain, tmp_path / "model")
    accelerate(plain, "int4")
    read = load_model(tmp_path / "model", "cpu", accelerate=accelerate, quantize="int4")
    expected = plain.state_dict()
    assert read.state_dict().keys() == expected.keys()
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_no_answer(value: float) -> None:
    """In int4 they are found at once, elsewhere they come out as none."""
    model = tiny_model(std=0.1)
    weight = "layers.1.mlp.up_proj"
    model.language_model.model.get_submodule(weight).weight.data[3, 5] = value
    broken = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match=f"{weight}.weight holds NaN or an infinity"):
        accelerate(broken, "int4")
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "layers.1.mlp.gate_proj"):
        model = tiny_model(std=0.1)
        cache, _ = filled(model)
        model.language_model.model.get_submodule(name).weight.data[3, 5] = value
        accelerate(model, "int8")
        with torch.inference_mode():
            hidden = model.extend(torch.tensor([[5], [7], [9]]), cache)
            assert not model.language_model.logits(hidden[:, -1]).isfinite().any()


def test_without_compiled_functions_int8_goes_as_it_went_and_int4_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mend = "numba is missing: pip install 'paliglass[fast]'"
    for name, value in (("obstacle", mend), ("is_available", False)):
        for module in (quantized, compiled_model):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda value=value: value)
    monkeypatch.setattr("paliglass.fast.int8.is_available", lambda: False)
    model = compiled("int8")
    assert type(model) is PaliGemmaForConditionalGeneration
    with pytest.raises(PaliglassError, match=r"int4 needs compiled functions: numba is missing"):
        compiled("int4")
    assert mend in explain(torch.bfloat16, "int4")[0]
    assert mend in explain(torch.bfloat16, "int8")[-1]


@pytest.mark.parametrize("is_faster", [True, False])
def test_int8_is_compiled_where_that_is_faster(
    is_faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_model, "_is_faster", lambda *_: is_faster)
    assert isinstance(compiled("int8"), CompiledPaliGemma) == is_faster
    assert isinstance(compiled("int4"), CompiledPaliGemma)


@pytest.mark.parametrize("name", DECODERS)
def test_a_layer_is_timed_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    clock = iter(range(10**6))
    # Of each pair of steps the first takes one tick, the second one, too: not faster.
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert type(compiled("int8", DECODERS[name])) is PaliGemmaForConditionalGeneration


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_where_onednn_has_no_kernel_prompts_are_compiled_too(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = filled(compiled(method))[1]
    monkeypatch.setattr("paliglass.fast.int8.has_kernel", lambda: False)
    model = compiled(method)
    linears = [m for m in model.modules() if isinstance(m, Int8Linear)]
    assert all(m.packed is None and m.weight is None and m.matrix is not None for m in linears)
    assert (filled(model)[1] - expected).norm() < 0.05 * expected.norm()


def test_matrices_share_one_memory_with_onednn() -> None:
    model = compiled("int8")
    for module in model.modules():
        if type(module) is Int8Linear and module.packed is not None:
            assert isinstance(module.matrix, PackedMatrix)
            assert module.matrix.weights.data_ptr() == torch.ops.mkldnn.data_ptr(module.packed)
