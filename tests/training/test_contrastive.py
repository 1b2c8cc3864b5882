"""Contrastive training: resumed is unbroken, accumulated is averaged, and it does learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.tiny import tiny_tokenizer
from tests.tiny_dual import CONFIGS

from paliglass.contrastive.pairs import PairBatch, PictureFiles, batches
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.contrastive.recipe import ContrastiveRecipe
from paliglass.contrastive.training import ContrastiveTrainer, dual_config, text_length
from paliglass.errors import CheckpointError, PaliglassError
from paliglass.layers.attention import Attention
from paliglass.training.attention import PlainAttention
from paliglass.training.processes import make_accelerator

COLOURS = ("red", "lime", "blue", "yellow")
STEPS = 6


@pytest.fixture
def source(tmp_path: Path) -> PictureFiles:
    pairs = []
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
        pairs.append((tmp_path / f"{colour}.png", f"a {colour} square"))
    return PictureFiles(pairs, 32)


def trainer(name: str = "vit-transformer-siglip", **settings: Any) -> ContrastiveTrainer:
    given = {"steps": STEPS, "batch_size": 4, "precision": "fp32", "warm_up_steps": 2} | settings
    recipe = ContrastiveRecipe(**given)
    return ContrastiveTrainer(CONFIGS[name], recipe, make_accelerator(recipe.precision))


def data(source: PictureFiles, model: ContrastiveTrainer, count: int = STEPS) -> list[PairBatch]:
    text = model.model.config.text
    processor = ContrastiveProcessor(
        tiny_tokenizer(), 32, text.max_position_embeddings, padding=text.padding
    )
    return list(batches(source, processor, 4, 0, 0, count))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["vit-transformer-siglip", "resnet-cbow-clip"])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    source: PictureFiles, tmp_path: Path, name: str, optimizer: str
) -> None:
    unbroken = trainer(name, optimizer=optimizer)
    batches = data(source, unbroken)
    expected = [unbroken.train_step([batch]) for batch in batches]
    first = trainer(name, optimizer=optimizer)
    got = [first.train_step([batch]) for batch in batches[:3]]
    first.save(tmp_path / "checkpoint")
    second = trainer(name, optimizer=optimizer)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.fill_(0.5)  # to be replaced
    second.resume(tmp_path / "checkpoint")
    got += [second.train_step([batch]) for batch in batches[second.step :]]
    assert got == expected
    for (key, a), b in zip(
        unbroken.model.state_dict().items(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


def test_another_recipe_or_model_is_refused_by_name(tmp_path: Path) -> None:
    trainer().save(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="started with batch_size 4, not 8"):
        trainer(batch_size=8).resume(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="started with loss siglip, not clip"):
        trainer("vit-transformer-clip").resume(tmp_path / "checkpoint")


def test_accumulated_batches_are_averaged_not_compared(source: PictureFiles) -> None:
    """Twice the same batch has that batch's gradient; compared with itself it had another."""
    once = trainer()
    (batch,) = data(source, once, 1)
    loss, _ = once.train_step([batch])["loss"]
    twice = trainer(accumulate=2)
    assert twice.train_step([batch, batch])["loss"] == pytest.approx((2 * loss, 2))
    for a, b in zip(once.model.parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["vit-cbow-clip", "siglip"])
def test_it_learns_which_text_goes_with_which_picture(
    source: PictureFiles, name: str, precision: str
) -> None:
    model = trainer(name, steps=40, learning_rate=3e-3, precision=precision)
    reports = [model.train_step([batch]) for batch in data(source, model, 40)]
    assert reports[-1]["accuracy"] == (1.0, 1)
    assert reports[-1]["loss"][0] < reports[0]["loss"][0] / 2
    assert all(p.dtype == torch.float32 for p in model.model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer(optimizer: str) -> None:
    model = trainer("resnet-transformer-siglip", optimizer=optimizer)
    groups = [group for o in model.optimizers.all for group in o.param_groups]
    held = [p.data_ptr() for group in groups for p in group["params"]]
    assert sorted(held) == sorted(p.data_ptr() for p in model.model.parameters())
    decayed = {p.data_ptr() for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {p.data_ptr() for p in model.model.parameters() if p.ndim >= 2}


def test_muon_updates_kernels_and_nothing_is_left_behind(source: PictureFiles) -> None:
    model = trainer("resnet-cbow-clip")
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    (batch,) = data(source, model, 1)
    model.train_step([batch])
    kernel = "image_encoder.blocks.0.convolution2.0.weight"
    update = (before[kernel] - dict(model.model.named_parameters())[kernel]).detach().flatten(1)
    singular = torch.linalg.svdvals(update)
    assert singular.max() < 2 * singular.min()  # orthogonalised: all directions alike
    assert all(p.grad is None for p in model.model.parameters())


def test_the_rate_rises_and_falls_to_zero() -> None:
    model = trainer(steps=100, warm_up_steps=4, learning_rate=1.0)
    rates = []
    for model.step in range(101):
        rates.append(model.rate)
    assert rates[0] == 0.25
    assert max(rates) == rates[3] > 0.99
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_weights_never_see_a_gradient_that_is_not_finite(source: PictureFiles) -> None:
    model = trainer()
    (batch,) = data(source, model, 1)
    with torch.no_grad():
        model.model.text_projection.weight.fill_(torch.nan)
    with pytest.raises(PaliglassError, match="step 1: the gradient is not finite"):
        model.train_step([batch])
    assert all(p.isfinite().all() for p in model.model.image_encoder.parameters())


def test_training_on_a_cpu_uses_it_and_files_do_not_show_it() -> None:
    model = trainer().model
    kinds = {type(m) for m in model.modules() if isinstance(m, Attention)}
    assert kinds == {PlainAttention}
    assert dual_config("vit", "transformer", "siglip", 300).is_siglip_model


def test_texts_have_room(source: PictureFiles) -> None:
    assert text_length(tiny_tokenizer(), source) == 16
    source.pairs = [(path, text * 50) for path, text in source.pairs]
    assert text_length(tiny_tokenizer(), source) == 64


def test_processes_must_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ContrastiveRecipe(batch_size=5)
    accelerator = make_accelerator(recipe.precision)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(PaliglassError, match="5 pairs cannot be shared by 2 processes"):
        ContrastiveTrainer(CONFIGS["siglip"], recipe, accelerator)
