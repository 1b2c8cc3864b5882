"""A training step against transformers', and LoRA adapters against peft's on its model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.parity.reference import logits_of, ours_from, pair, reference_model
from tests.tiny import GEMMA2, TINY, make_batch, tiny_config

from paliglass.checkpoints.adapters import with_adapter
from paliglass.checkpoints.assembly import assemble
from paliglass.checkpoints.layouts import module_name
from paliglass.errors import CheckpointError
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.finetuner import Finetuner
from paliglass.training.lora import DECODER, save_lora
from paliglass.training.processes import make_accelerator
from paliglass.training.recipes import FinetuneRecipe
from paliglass.training.sharding import gather

# peft asks transformers' models for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

RECIPE = FinetuneRecipe(steps=4, batch_size=3, precision="fp32", warm_up=0.0, learning_rate=1e-3)
PREFIX = "base_model.model."


def batch_of(config: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    return make_batch(config, [4, 6, 3], [5, 2, 7], seed=seed)


def finetuner(model: Any, **changes: Any) -> Finetuner:
    recipe = dataclasses.replace(RECIPE, **changes)
    return Finetuner(model, recipe, make_accelerator("fp32"))


def gradients(trainer: Finetuner, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients of a step, as they are before they are clipped."""
    kept: dict[str, torch.Tensor] = {}
    for name, parameter in trainer.learning.items():
        parameter.register_hook(lambda g, name=name: kept.__setitem__(name, g.clone()))
    trainer.train_step([batch])
    return kept


@pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])
def test_loss_and_gradients_of_a_step(decoder: dict[str, Any]) -> None:
    config = tiny_config(**decoder)
    theirs, ours = pair(config)
    batch = batch_of(config)
    trainer = finetuner(ours)
    mine = gradients(trainer, batch)
    loss = theirs(**batch).loss
    loss.backward()
    checked = 0
    for key, parameter in theirs.named_parameters():
        if parameter.grad is None:
            continue
        torch.testing.assert_close(mine[module_name(key)], parameter.grad, atol=1e-4, rtol=1e-4)
        checked += 1
    assert checked == len(mine)
    again = dataclasses.replace(RECIPE, steps=4)
    reported = Finetuner(ours_from(theirs, config), again, trainer.accelerator)
    total, count = reported.train_step([batch])["loss"]
    assert total / count == pytest.approx(loss.item(), abs=1e-5)


def test_loss_and_gradients_of_lora(tmp_path: Path) -> None:
    theirs, ours = pair(TINY)
    trainer = finetuner(ours, lora=4, lora_alpha=8.0, train="decoder")
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=DECODER)
    adapted = peft.get_peft_model(theirs, settings)
    their_parameters = {
        module_name(name.removeprefix(PREFIX)): parameter
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    assert their_parameters.keys() == trainer.learning.keys()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.learning.items():  # B is 0 at the start
            parameter.normal_(std=0.1, generator=generator)
            their_parameters[name].copy_(parameter)
    batch = batch_of(TINY)
    loss = adapted(**batch).loss
    assert trainer.mean_loss(iter([batch])) == pytest.approx(loss.item(), abs=1e-4)
    mine = gradients(trainer, batch)
    loss.backward()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, their_parameters[name].grad, atol=1e-4, rtol=1e-4)


def adapted_by(
    model: PaliGemmaForConditionalGeneration, folder: Path
) -> PaliGemmaForConditionalGeneration:
    """The model with an adapter merged, as a checkpoint's is while it is read."""
    tensors = ((name, name, tensor) for name, tensor in model.state_dict().items())
    return assemble(model.config, with_adapter(tensors, folder), "here")


@pytest.mark.parametrize("part", ["attention", "decoder", "all"])
def test_our_adapters_load_into_transformers_and_merge_into_ours(part: Any, tmp_path: Path) -> None:
    theirs, ours = pair(TINY)
    before = ours_from(theirs, TINY)
    trainer = finetuner(ours, lora=2, lora_alpha=6.0, train=part)
    for seed in range(3):
        trainer.train_step([batch_of(TINY, seed)])
    save_lora(
        trainer.model, gather(trainer.learning, trainer.accelerator), tmp_path / "adapter", "tiny"
    )
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    before = adapted_by(before, tmp_path / "adapter")
    batch = {k: v for k, v in batch_of(TINY).items() if k != "labels"}
    trained = logits_of(trainer.model.eval(), batch)
    torch.testing.assert_close(logits_of(adapted, batch), trained, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(before, batch), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_of_peft_on_transformers_load_here(rslora: bool, tmp_path: Path) -> None:
    theirs = reference_model(TINY)
    ours = ours_from(theirs, TINY)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=rslora
    )
    adapted = peft.get_peft_model(theirs, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(tmp_path)
    ours = adapted_by(ours, tmp_path)
    batch = {k: v for k, v in batch_of(TINY).items() if k != "labels"}
    torch.testing.assert_close(
        logits_of(ours, batch), logits_of(adapted.eval(), batch), atol=1e-4, rtol=1e-4
    )


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    theirs, ours = pair(TINY)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(theirs, settings).save_pretrained(tmp_path / "dora")
    with pytest.raises(CheckpointError, match="use_dora is True, which is not supported"):
        adapted_by(ours, tmp_path / "dora")
    other, _ = pair(tiny_config(hidden_size=64))
    plain = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(other, plain).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"is \[.*\] in this model, the adapter's"):
        adapted_by(ours, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        adapted_by(ours, tmp_path)
