"""The dual encoder and its parts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.tiny_dual import CBOW, CONFIGS, RESNET, SIGLIP, TRANSFORMER, dual_batch, dual_model
from torch import nn

from paliglass.config import SigLipConfig
from paliglass.contrastive.config import ContrastiveConfig, ResNetConfig
from paliglass.contrastive.encoders import (
    AttentionPooling,
    BasicBlock,
    Cbow,
    ResNet,
    TextTransformer,
)
from paliglass.contrastive.losses import clip_loss, siglip_loss
from paliglass.contrastive.modeling_contrastive import ContrastiveModel


@pytest.mark.parametrize("name", CONFIGS)
def test_every_combination_embeds_on_the_sphere_and_learns_with_every_part(name: str) -> None:
    config = CONFIGS[name]
    model, batch = dual_model(config).train(), dual_batch(config)
    output = model(**batch)
    for embeds in (output.image_embeds, output.text_embeds):
        assert embeds.shape == (5, config.projection_dim)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(5))
    bias = 0 if model.logit_bias is None else model.logit_bias
    expected = output.image_embeds @ output.text_embeds.T * math.exp(1.5) + bias
    torch.testing.assert_close(output.logits, expected)
    output.loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # Adding one vector to all keys adds a constant to a query's scores: softmax ignores it.
        if not parameter_name.endswith("k_proj.bias"):
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", ["vit-transformer-clip", "resnet-cbow-siglip", "siglip"])
def test_a_few_steps_pair_up_a_batch(name: str) -> None:
    torch.manual_seed(0)
    config = CONFIGS[name]
    model, batch = ContrastiveModel(config).train(), dual_batch(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with torch.inference_mode():
        assert model(**batch).logits.argmax(-1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", CONFIGS)
def test_in_evaluation_a_row_does_not_depend_on_the_others(name: str) -> None:
    config = CONFIGS[name]
    model, batch = dual_model(config), dual_batch(config)
    words = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        images = model.embed_images(batch["pixel_values"])
        texts = model.embed_texts(**words)
        for i in range(len(images)):
            alone = model.embed_images(batch["pixel_values"][i : i + 1])
            torch.testing.assert_close(alone[0], images[i], rtol=1e-4, atol=1e-5)
            row = {key: value[i : i + 1] for key, value in words.items()}
            if config.text.padding == "longest":
                row = {
                    key: value[:, : int(words["attention_mask"][i].sum())]
                    for key, value in row.items()
                }
            torch.testing.assert_close(model.embed_texts(**row)[0], texts[i], rtol=1e-4, atol=1e-5)


def test_the_temperature_starts_where_the_papers_start_it() -> None:
    clip = ContrastiveModel(CONFIGS["vit-cbow-clip"])
    assert clip.scale.item() == pytest.approx(1 / 0.07)
    assert clip.logit_bias is None
    siglip = ContrastiveModel(CONFIGS["vit-cbow-siglip"])
    assert siglip.scale.item() == pytest.approx(10)
    assert siglip.logit_bias is not None
    assert siglip.logit_bias.item() == -10


def test_clips_scale_stops_at_100_and_can_come_back() -> None:
    config = CONFIGS["resnet-cbow-clip"]
    model, batch = dual_model(config).train(), dual_batch(config)
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    model(**batch).loss.backward()
    assert model.scale.item() == pytest.approx(100, rel=1e-5)
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() != 0


def test_the_loss_is_that_of_the_configuration() -> None:
    config = CONFIGS["vit-cbow-clip"]
    model, batch = dual_model(config), dual_batch(config)
    output = model(**batch)
    expected = clip_loss(output.image_embeds, output.text_embeds, model.scale)
    assert torch.equal(output.loss, expected)
    model = dual_model()
    output = model(**dual_batch(SIGLIP))
    assert model.logit_bias is not None
    embeds = (output.image_embeds, output.text_embeds)
    assert torch.equal(output.loss, siglip_loss(*embeds, model.scale, model.logit_bias))


def test_unpaired_batches_are_refused() -> None:
    batch = dual_batch(SIGLIP)
    batch["pixel_values"] = batch["pixel_values"][:3]
    with pytest.raises(ValueError, match="3 pictures and 5 texts"):
        dual_model()(**batch)


# ------------------------------------------------------------------ pictures


def resnet() -> ResNet:
    model = dual_model(CONFIGS["resnet-cbow-clip"]).image_encoder
    assert isinstance(model, ResNet)
    return model


def test_batch_norm_uses_the_batch_in_training_and_its_averages_in_evaluation() -> None:
    model, pixels = resnet(), dual_batch(CONFIGS["resnet-cbow-clip"])["pixel_values"]
    norm = model.stem[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    with torch.no_grad():
        evaluated = model.eval()(pixels)
        assert torch.equal(norm.running_mean, before)
        trained = model.train()(pixels)
        mean = model.stem[0](pixels).mean((0, 2, 3))
    assert not torch.allclose(evaluated, trained, atol=1e-3)
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * mean)


def test_a_new_block_is_its_shortcut() -> None:
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(BasicBlock(8, 8, 1)(x), x)
    assert BasicBlock(8, 16, 2)(x).shape == (2, 16, 3, 3)


def test_the_default_resnet_ends_in_four_by_four() -> None:
    model = ResNet(ResNetConfig())
    seen = []
    model.blocks.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert model(torch.zeros(2, 3, 128, 128)).shape == (2, 256)
    assert seen == [(2, 256, 4, 4)]


def test_the_resnet_names_the_side_it_takes() -> None:
    with pytest.raises(ValueError, match="takes pictures of 32 × 32"):
        resnet()(torch.zeros(1, 3, 64, 64))


def test_the_pooling_head_asks_every_patch_in_whatever_order() -> None:
    config = SigLipConfig(32, 48, 1, 4, 3, 32, 8)
    head = AttentionPooling(config)
    patches = torch.randn(2, 16, 32)
    torch.testing.assert_close(head(patches.flip(1)), head(patches))
    changed = patches.clone()
    changed[:, 7] += 1
    assert not torch.allclose(head(changed), head(patches), atol=1e-4)


# --------------------------------------------------------------------- texts


def test_cbow_ignores_padding_and_order() -> None:
    model = Cbow(CBOW)
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    expected = model.token_embedding.weight[[5, 6, 7]].mean(0)[None]
    torch.testing.assert_close(model(ids, mask), expected)
    torch.testing.assert_close(model(ids[:, :3]), expected)
    torch.testing.assert_close(model(torch.tensor([[7, 5, 6, 9, 8]]), mask), expected)
    assert not model(ids, torch.zeros_like(mask)).any()


def test_the_transformer_reads_order_and_both_sides() -> None:
    torch.manual_seed(0)
    model = TextTransformer(TRANSFORMER).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not torch.allclose(model(ids), model(ids[:, [1, 0, 2, 3]]), atol=1e-4)
    seen = []
    model.encoder.register_forward_hook(lambda m, i, output: seen.append(output))
    changed = ids.clone()
    changed[0, 3] = 9
    for row in (ids, changed):
        model(row)
    assert not torch.allclose(seen[0][0, 0], seen[1][0, 0], atol=1e-4)


def test_a_causal_transformer_does_not_see_what_comes() -> None:
    torch.manual_seed(0)
    model = TextTransformer(dataclasses.replace(TRANSFORMER, causal=True)).eval()
    seen = []
    model.encoder.register_forward_hook(lambda m, i, output: seen.append(output))
    for row in ([5, 6, 7, 8], [5, 6, 7, 9]):
        model(torch.tensor([row]))
    torch.testing.assert_close(seen[0][0, :3], seen[1][0, :3])
    assert not torch.allclose(seen[0][0, 3], seen[1][0, 3], atol=1e-4)


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens long; this encoder has 12 positions"):
        TextTransformer(TRANSFORMER)(torch.zeros(1, 13, dtype=torch.long))


def test_in_bfloat16_the_embeddings_are_still_float32() -> None:
    for image in (SIGLIP.image, RESNET):
        config = ContrastiveConfig(image, CBOW, 16)
        output = dual_model(config).bfloat16()(**dual_batch(config))
        assert output.logits.dtype == output.image_embeds.dtype == torch.float32
        torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(5))
