"""Adapters beside frozen int8 matrices: the gradients are those of the same matrices in float."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from paliglass.errors import PaliglassError
from paliglass.fast import accelerate
from paliglass.fast.int8 import Int8Linear
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.finetuner import Finetuner
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import FinetuneRecipe

RECIPE = FinetuneRecipe(
    steps=6, batch_size=3, precision="fp32", warm_up=0.0, learning_rate=1e-2, lora=4
)
Model = PaliGemmaForConditionalGeneration


def pair(**decoder: Any) -> tuple[Model, Model]:
    """A model in int8, and one in float with the numbers that those integers stand for."""
    small, plain = (tiny_model(tiny_config(**decoder)) for _ in range(2))
    accelerate(small, "int8", plain=True)
    for name, module in small.named_modules():
        if isinstance(module, Int8Linear):
            assert module.weight is not None
            linear = plain.get_submodule(name)
            linear.weight.data = module.weight * module.scale[:, None]
    plain.tie_weights()
    return small, plain


def finetuner(model: Model, **changes: Any) -> Finetuner:
    recipe = dataclasses.replace(RECIPE, **changes)
    return Finetuner(model, recipe, make_accelerator(recipe.precision))


def gradients(trainer: Finetuner, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a step in which no adapter is at its start, where half of them have none."""
    kept: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.learning.items():
        parameter.data.normal_(std=0.1, generator=generator)
        parameter.register_hook(lambda g, name=name: kept.__setitem__(name, g.clone()))
    trainer.train_step([batch])
    return kept


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (64, 48), (1100, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_matrix_passes_gradients_on(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bias = torch.nn.Parameter(torch.randn(rows, generator=generator), requires_grad=False)
    layer = Int8Linear.quantize(torch.randn(rows, columns, generator=generator), bias)
    x = torch.randn(2, 3, columns, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(2, 3, rows, generator=generator)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert kept == []
    [found] = torch.autograd.grad((y * weights).sum(), x)
    assert layer.weight is not None
    wide = x.detach().float().requires_grad_()
    expected = F.linear(wide, layer.weight * layer.scale[:, None], bias)
    [right] = torch.autograd.grad((expected * weights).sum(), wide)
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert (y.float() - expected).abs().max() < close * expected.abs().max()
    assert (found.float() - right).abs().max() < close * right.abs().max()
    assert (y.dtype, found.dtype) == (dtype, dtype)


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
@pytest.mark.parametrize("train", ["all", "decoder", "attention"])
def test_loss_and_gradients_are_the_float_models(decoder: dict[str, Any], train: str) -> None:
    small, plain = pair(**decoder)
    batch = make_batch(small.config, [4, 6, 3], [5, 2, 7])
    ours = finetuner(small, train=train, checkpointing=train == "all")
    theirs = finetuner(plain, train=train)
    mine, right = gradients(ours, batch), gradients(theirs, batch)
    assert mine.keys() == right.keys() == ours.learning.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-5)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_learn_and_the_rest_stays(precision: Any) -> None:
    small = tiny_model(tiny_config())
    if precision == "bf16":
        small.bfloat16()
    accelerate(small, "int8", plain=True)
    trainer = finetuner(small, precision=precision)
    assert all("lora" in name for name in trainer.learning)
    before = copy.deepcopy({n: t for n, t in small.state_dict().items() if "lora" not in n})
    batch = make_batch(small.config, [4, 6, 3], [5, 2, 7])
    losses = []
    for _ in range(6):
        total, tokens = trainer.train_step([batch])["loss"]
        losses.append(total / tokens)
    assert losses[-1] < losses[0] - 0.1
    after = small.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert trainer.settings()["quantize"] == "int8"


def test_what_cannot_learn_is_refused() -> None:
    small, _ = pair()
    with pytest.raises(PaliglassError, match="--quantize int8 needs --lora"):
        finetuner(small, lora=0)
    with pytest.raises(PaliglassError, match="and no --shard"):
        Finetuner(small, RECIPE, make_accelerator("fp32"), shard=True)
    accelerated = tiny_model()
    accelerate(accelerated)  # a GPU's norms would stay as they are, and packed matrices be lost
    with pytest.raises(PaliglassError, match="accelerated model cannot be trained; load with fast"):
        finetuner(accelerated, lora=0)
