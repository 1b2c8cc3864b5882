"""Our dual encoders and transformers' SiglipModel and CLIPModel, with the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tiny import noise_picture, randomise, tiny_tokenizer
from tests.tiny_dual import (
    SIGLIP,
    TRANSFORMER,
    VIT,
    dual_batch,
    dual_model,
)
from torch import Tensor, nn

from paliglass.contrastive.config import ContrastiveConfig
from paliglass.contrastive.folders import (
    _our_name,
    initialize_vision_tower,
    load_contrastive,
    save_contrastive,
)
from paliglass.contrastive.modeling_contrastive import ContrastiveModel

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def siglip_model(**text: Any) -> Any:
    """A random SiglipModel, whose text encoder is narrower than its tower."""
    data = SIGLIP.to_dict()
    data["text_config"] |= text
    theirs = transformers.SiglipModel(transformers.SiglipConfig.from_dict(data))
    randomise(theirs)
    with torch.no_grad():
        theirs.logit_scale.fill_(1.5)
        theirs.logit_bias.fill_(-2.0)
    return theirs.eval()


def published(theirs: Any, folder: Path) -> Path:
    theirs.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def compare(
    ours: ContrastiveModel, theirs: nn.Module, batch: dict[str, Tensor], names: dict[str, str]
) -> None:
    """Loss, logits, embeddings and the gradient of every parameter. names: theirs → ours."""
    reference = theirs(**batch, return_loss=True)
    output = ours(**batch)
    torch.testing.assert_close(output.loss, reference.loss, **TOLERANCE)
    torch.testing.assert_close(output.logits, reference.logits_per_image, **TOLERANCE)
    torch.testing.assert_close(output.image_embeds, reference.image_embeds, **TOLERANCE)
    torch.testing.assert_close(output.text_embeds, reference.text_embeds, **TOLERANCE)
    reference.loss.backward()
    output.loss.backward()
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        gradient = parameters.pop(names[name]).grad
        assert gradient is not None
        assert parameter.grad is not None
        expected = parameter.grad.reshape(gradient.shape)
        torch.testing.assert_close(
            gradient, expected, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert not parameters


@pytest.mark.parametrize("text_width", [24, 32])
def test_siglip_loss_and_every_gradient(text_width: int, tmp_path: Path) -> None:
    theirs = siglip_model(hidden_size=text_width, num_attention_heads=4)
    ours, _ = load_contrastive(published(theirs, tmp_path), "cpu")
    assert ours.config.is_siglip_model
    batch = dual_batch(ours.config)
    del batch["attention_mask"]  # SigLIP's tokenizer gives none: padding is attended to
    compare(ours, theirs, batch, {name: _our_name(name) for name, _ in theirs.named_parameters()})


def test_a_mask_changes_nothing_where_padding_is_attended_to() -> None:
    ours, batch = dual_model(), dual_batch(SIGLIP)
    masked = ours.embed_texts(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(masked, ours.embed_texts(batch["input_ids"]))


class ClipImages(nn.Module):
    """CLIP's tower as an image encoder of ours.

    It has a class token, a norm before the layers and no bias on patches, all of which ours, being
    PaliGemma's, has not; what comes after it, and the whole text side, is ours.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.tower(pixel_values).pooler_output


def clip_pair() -> tuple[Any, ContrastiveModel, dict[str, str]]:
    text = dataclasses.replace(
        TRANSFORMER, hidden_act="quick_gelu", causal=True, layer_norm_eps=1e-5
    )
    text_data = {
        k: v for k, v in dataclasses.asdict(text).items() if k not in ("causal", "padding")
    }
    vision_data = dataclasses.asdict(VIT)
    config = transformers.CLIPConfig.from_dict(
        {
            "text_config": {**text_data, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2},
            "vision_config": vision_data,
            "projection_dim": 16,
        }
    )
    theirs = transformers.CLIPModel(config).eval()
    randomise(theirs)
    with torch.no_grad():
        theirs.logit_scale.fill_(1.5)
    ours = ContrastiveModel(ContrastiveConfig(VIT, text, 16, "clip")).eval()
    tower = transformers.CLIPModel(config).vision_model
    tower.load_state_dict(theirs.vision_model.state_dict())
    ours.image_encoder = ClipImages(tower)
    prefixes = {
        "vision_model.": "image_encoder.tower.",
        "visual_projection.": "image_projection.",
        "text_model.": "text_encoder.",
        "text_projection.": "text_projection.",
        "logit_scale": "logit_scale",
    }
    names = {
        name: mine + name.removeprefix(prefix)
        for name, _ in theirs.named_parameters()
        for prefix, mine in prefixes.items()
        if name.startswith(prefix)
    }
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            mine: state[name].reshape(-1) if name == "logit_scale" else state[name]
            for name, mine in names.items()
        }
    )
    return theirs, ours, names


def test_clip_loss_and_every_gradient() -> None:
    theirs, ours, names = clip_pair()
    batch = dual_batch(ours.config)
    is_word = batch["attention_mask"].bool()
    ids = batch["input_ids"]
    ends = is_word.sum(-1) - 1
    ids[ids == 3] = 4
    ids[torch.arange(len(ids)), ends] = 3  # the end of text, whose state CLIP takes
    compare(ours, theirs.eval(), batch, names)


def test_what_we_save_is_a_siglip_model(tmp_path: Path) -> None:
    ours = dual_model()
    save_contrastive(ours, tmp_path / "saved", tiny_tokenizer())
    theirs, info = transformers.SiglipModel.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(info.values()), info
    _, processor = load_contrastive(tmp_path / "saved", "cpu")
    texts = ["a cap", "a dog, an Englishman and a far too long tail of words"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    their_words = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    words = processor.words(texts)
    assert their_words.keys() == {"input_ids"}
    assert torch.equal(their_words["input_ids"], words["input_ids"])

    pictures = [noise_picture(seed=1), noise_picture(50, 40, seed=2)]
    pixels = torch.stack([processor.pixels(picture) for picture in pictures])
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    their_pixels = images(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, their_pixels, **TOLERANCE)
    with torch.inference_mode():
        reference = theirs(pixel_values=their_pixels, **their_words).logits_per_image
        logits = ours(pixels, **words).logits
    torch.testing.assert_close(logits, reference, **TOLERANCE)


def test_their_silent_configuration_is_siglip_base(tmp_path: Path) -> None:
    """google/siglip-base-patch16-224 says no more than this."""
    data: dict[str, Any] = {
        "model_type": "siglip",
        "initializer_factor": 1.0,
        "text_config": {"model_type": "siglip_text_model", "vocab_size": 32000},
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    config = ContrastiveConfig.from_dict(data)
    with torch.device("meta"):
        theirs = transformers.SiglipModel(transformers.SiglipConfig.from_dict(data))
        ours = ContrastiveModel(config)
    expected = {_our_name(name): t.shape for name, t in theirs.state_dict().items()}
    assert {name: t.shape for name, t in ours.state_dict().items()} == expected


def test_a_tower_from_siglip_sees_the_same_in_paligemma(tmp_path: Path) -> None:
    from paliglass import PaliGemmaConfig
    from paliglass.config import PRESETS
    from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration

    theirs = siglip_model()
    config = PaliGemmaConfig(VIT, PRESETS["tiny"].text_config, 319)
    paligemma = PaliGemmaForConditionalGeneration(config)
    initialize_vision_tower(paligemma, published(theirs, tmp_path))
    pixels = dual_batch(SIGLIP)["pixel_values"]
    with torch.inference_mode():
        expected = theirs.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(paligemma.vision_tower(pixels), expected, **TOLERANCE)
