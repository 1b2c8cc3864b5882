"""Small dual encoders, of every combination of parts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from paliglass.config import SigLipConfig
from paliglass.contrastive.config import (
    CbowConfig,
    ContrastiveConfig,
    ResNetConfig,
    TextTransformerConfig,
)
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from tests.tiny import randomise, tiny_tokenizer

VOCABULARY = tiny_tokenizer().get_vocab_size()
VIT = SigLipConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)
RESNET = ResNetConfig(hidden_sizes=(8, 16), depths=(1, 2), image_size=32)
TRANSFORMER = TextTransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=12,
    padding="longest",
)
FIXED_TRANSFORMER = dataclasses.replace(TRANSFORMER, padding="max_length")
CBOW = CbowConfig(vocab_size=VOCABULARY, hidden_size=24, max_position_embeddings=12)

SIGLIP = ContrastiveConfig.like_siglip(VIT, FIXED_TRANSFORMER)
CONFIGS = {
    f"{image}-{text}-{loss}": ContrastiveConfig(images, texts, 16, loss)  # type: ignore[arg-type]
    for image, images in (("vit", VIT), ("resnet", RESNET))
    for text, texts in (("transformer", TRANSFORMER), ("cbow", CBOW))
    for loss in ("clip", "siglip")
}
CONFIGS["siglip"] = SIGLIP
CONFIGS["mean"] = ContrastiveConfig(VIT, TRANSFORMER, 16, image_pooling="mean")


def dual_model(config: ContrastiveConfig = SIGLIP, seed: int = 0) -> ContrastiveModel:
    """Random weights, also in norms, biases and BatchNorm's averages; a bearable temperature."""
    model = ContrastiveModel(config).eval()
    randomise(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.uniform_(0.5, 1.5, generator=generator)
            assert "running" in name
        model.logit_scale.fill_(1.5)
    return model


def dual_batch(config: ContrastiveConfig, size: int = 5, seed: int = 0) -> dict[str, Any]:
    """Noise and random words: rows of 3 … 7 tokens, padded on the right with zeros."""
    generator = torch.Generator().manual_seed(seed)
    side = config.image.image_size
    lengths = torch.tensor([3 + i % 5 for i in range(size)])
    fixed = config.text.padding == "max_length"
    length = config.text.max_position_embeddings if fixed else int(lengths.max())
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids: Tensor = torch.randint(4, config.text.vocab_size, (size, length), generator=generator)
    return {
        "pixel_values": torch.rand(size, 3, side, side, generator=generator) * 2 - 1,
        "input_ids": ids * mask,
        "attention_mask": mask,
    }
