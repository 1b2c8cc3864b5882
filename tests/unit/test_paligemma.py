"""The whole model: the merge, who influences whom, and strictness about numbers of pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import GEMMA2, make_batch, tiny_config, tiny_model

from paliglass.layers.losses import IGNORE

decoders = pytest.mark.parametrize("decoder", [{}, GEMMA2], ids=["gemma", "gemma2"])


@decoders
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_no_answer_token_reaches_what_comes_before_it(decoder: dict[str, Any], side: str) -> None:
    """Label leakage: a loss that falls for the wrong reason."""
    model = tiny_model(tiny_config(**decoder))
    batch = make_batch(model.config, [5, 7], [6, 3], side=side)
    batch.pop("labels")
    before = model(**batch).logits
    for row in range(2):
        suffix = batch["token_type_ids"][row].nonzero()[:, 0].tolist()
        for place in suffix:
            changed = batch["input_ids"].clone()
            changed[row, place] = (changed[row, place] + 1) % 300
            difference = (model(**batch | {"input_ids": changed}).logits - before).abs().amax(-1)
            earlier = batch["attention_mask"].bool()
            earlier[row, place:] = False
            assert difference[earlier].max() < 1e-5, (row, place)
            assert difference[row, place] > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("suffixes", [[6, 3], [1, 9], [0, 4]])
@pytest.mark.parametrize("learned", [1.0, 0.5])  # parts of a suffix may be left out of the loss
@torch.inference_mode()
def test_labels_alone_tell_which_tokens_are_the_answer(
    side: str, suffixes: list[int], learned: float
) -> None:
    model = tiny_model()
    batch = make_batch(model.config, [5, 7], suffixes, side=side)
    labels, types = batch["labels"], batch.pop("token_type_ids")
    begins = types.cumsum(-1) == 1
    drawn = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < learned
    labels[~(drawn | begins)] = IGNORE
    told = model(**batch, token_type_ids=types)
    alone = model(**batch)
    assert torch.equal(alone.loss, told.loss)
    is_token = batch["attention_mask"].bool()
    assert torch.equal(alone.logits[is_token], told.logits[is_token])


@decoders
@torch.inference_mode()
def test_the_prefix_sees_itself_whole(decoder: dict[str, Any]) -> None:
    """Causal attention over the prompt is the mistake of more than one runtime."""
    model = tiny_model(tiny_config(**decoder))
    batch = make_batch(model.config, [6])
    before = model(**batch).logits
    changed = batch["input_ids"].clone()
    changed[0, -1] = (changed[0, -1] + 1) % 300
    difference = (model(**batch | {"input_ids": changed}).logits - before).abs().amax(-1)
    assert difference.min() > 1e-4  # even the picture's first place


@torch.inference_mode()
def test_every_picture_of_a_batch_reaches_its_own_row_alone() -> None:
    model = tiny_model()
    pictures = [1, 2, 1]
    batch = make_batch(model.config, [4, 6, 5], pictures=pictures)
    before = model(**batch).logits
    owners = [row for row, count in enumerate(pictures) for _ in range(count)]
    for picture, owner in enumerate(owners):
        pixels = batch["pixel_values"].clone()
        pixels[picture] *= -1
        difference = (model(**batch | {"pixel_values": pixels}).logits - before).abs()
        for row in range(3):
            places = batch["attention_mask"][row].bool()
            assert (difference[row][places].max() > 1e-3) == (row == owner)


@pytest.mark.parametrize("given", [1, 3])
def test_more_or_fewer_pictures_than_places_are_refused(given: int) -> None:
    model = tiny_model()
    batch = make_batch(model.config, [4, 6])
    batch["pixel_values"] = batch["pixel_values"][:1].repeat(given, 1, 1, 1)
    with pytest.raises(ValueError, match=f"32 <image> tokens, the pictures give {given * 16}"):
        model(**batch)


def test_pictures_of_the_wrong_size_are_refused() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [4])
    with pytest.raises(ValueError, match="56 × 56"):
        model(**batch | {"pixel_values": torch.zeros(1, 3, 70, 70)})


@pytest.mark.parametrize("width", [48, 60])
def test_words_are_scaled_by_root_width_and_pictures_are_not(width: int) -> None:
    model = tiny_model(tiny_config(hidden_size=width))
    batch = make_batch(model.config, [4])
    with torch.inference_mode():
        features = model.get_image_features(batch["pixel_values"])
        merged = model.embed(batch["input_ids"], features)[0]
    assert torch.equal(merged[:16], features[0])
    rows = model.language_model.model.embed_tokens.weight[batch["input_ids"][0, 16:]]
    torch.testing.assert_close(merged[16:], rows * width**0.5)


@pytest.mark.parametrize(
    ("width", "rounded"), [(2048, 45.25), (2304, 48.0), (3584, 59.75), (4608, 68.0)]
)
def test_the_scale_is_rounded_as_bfloat16_rounds_it(width: int, rounded: float) -> None:
    config = tiny_config(hidden_size=width, num_hidden_layers=1, intermediate_size=8)
    decoder = tiny_model(config).bfloat16().language_model.model
    ids = torch.tensor([[7]])
    assert torch.equal(decoder.embed(ids), decoder.embed_tokens(ids) * rounded)


def test_the_image_token_may_lie_outside_the_table() -> None:
    config = tiny_config(vocab_size=319)
    assert config.image_token_index == 319
    batch = make_batch(config, [4])
    assert tiny_model(config)(**batch).logits.isfinite().all()


def test_tied_weights_are_one_parameter_with_both_gradients() -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    assert not any("lm_head" in name for name in names)
    batch = make_batch(model.config, [4], [3])
    model(**batch).loss.backward()
    gradient = model.language_model.model.embed_tokens.weight.grad
    assert gradient is not None
    is_input = torch.zeros(320, dtype=torch.bool)
    is_input[batch["input_ids"]] = True
    assert gradient[~is_input].abs().sum() > 0  # words that were never read: from the output side


def test_capacity_of_the_returned_cache_serves_the_next_call() -> None:
    model = tiny_model()
    batch = make_batch(model.config, [4])
    with torch.inference_mode():
        output = model(**batch)
        again = model(torch.tensor([[5]]), kv_cache=output.kv_cache)
    assert again.kv_cache is output.kv_cache
    assert again.logits.shape == (1, 1, 320)


@pytest.mark.parametrize("reduction", ["token_mean", "example_mean"])
def test_a_loss_in_a_batch_is_the_mean_its_name_says(reduction: Any) -> None:
    model = tiny_model(std=0.1)
    batch = make_batch(model.config, [5, 5], [6, 2])
    losses = []
    for row in range(2):
        keep = batch["attention_mask"][row].bool()
        alone = {k: v[row : row + 1] for k, v in batch.items()}
        alone |= {k: v[:, keep] for k, v in alone.items() if k != "pixel_values"}
        losses.append(model(**alone).loss)
    together = model(**batch, loss_reduction=reduction).loss
    weights = (6 / 8, 2 / 8) if reduction == "token_mean" else (1 / 2, 1 / 2)
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
