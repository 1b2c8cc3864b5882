"""Dual encoders' configurations: strict, and back from their JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.tiny_dual import CONFIGS, RESNET, SIGLIP, TRANSFORMER, VIT

from paliglass.contrastive.config import (
    CbowConfig,
    ContrastiveConfig,
    ResNetConfig,
    TextTransformerConfig,
)
from paliglass.errors import ConfigError


@pytest.mark.parametrize("name", CONFIGS)
def test_json_and_back(name: str) -> None:
    data = json.loads(json.dumps(CONFIGS[name].to_dict()))
    assert ContrastiveConfig.from_dict(data) == CONFIGS[name]
    assert data["model_type"] == ("siglip" if name == "siglip" else "paliglass_contrastive")


@pytest.mark.parametrize("name", ["siglip", "resnet-cbow-clip", "vit-transformer-siglip"])
@pytest.mark.parametrize("section", ["", "text_config", "vision_config", "image_config"])
def test_an_unknown_key_is_refused_by_name(name: str, section: str) -> None:
    data = CONFIGS[name].to_dict()
    target = data.get(section, data)
    target["tempreature"] = 1
    with pytest.raises(ConfigError, match="unknown key 'tempreature'"):
        ContrastiveConfig.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "model_type is 'clip'; dual encoders are 'siglip'"),
        ({"projection_dim": 0}, "projection_dim is 0; it must be above 0"),
        ({"loss": "triplet"}, "loss is 'triplet'; it must be 'clip' or 'siglip'"),
        ({"image_pooling": "max"}, "image_pooling is 'max'; it must be 'attention' or 'mean'"),
        ({"image_projection": False}, "without image_projection it is the image encoder's"),
        ({"image_config": {"model_type": "convnext"}}, "'model_type' is 'convnext'"),
        ({"text_config": {}}, "text_config lacks 'model_type'"),
        ({"text_config": None}, "text_config is None, not a JSON object"),
    ],
)
def test_impossible_values(changes: dict[str, Any], message: str) -> None:
    data = CONFIGS["vit-transformer-clip"].to_dict() | changes
    with pytest.raises(ConfigError, match=message):
        ContrastiveConfig.from_dict(data)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNetConfig((8, 16), (1,)), "one each for a stage"),
        (lambda: ResNetConfig((8, 0), (1, 1)), r"hidden_sizes is \(8, 0\); it must be above 0"),
        (lambda: ResNetConfig((), ()), r"hidden_sizes is \(\); it must be an int"),
        (lambda: TextTransformerConfig(hidden_size=10, num_attention_heads=3), "not a multiple"),
        (lambda: TextTransformerConfig(hidden_act="relu"), "hidden_act is 'relu'"),  # type: ignore
        (lambda: TextTransformerConfig(padding="left"), "padding is 'left'"),  # type: ignore
        (lambda: CbowConfig(vocab_size=-1), "vocab_size is -1"),
    ],
)
def test_impossible_encoders(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_siglip_model_without_its_head_is_refused() -> None:
    data = SIGLIP.to_dict()
    data["vision_config"]["vision_use_head"] = False
    with pytest.raises(ConfigError, match="'vision_use_head' is False"):
        ContrastiveConfig.from_dict(data)


def test_a_siglip_model_whose_towers_do_not_meet_is_refused() -> None:
    data = SIGLIP.to_dict()
    data["text_config"]["projection_size"] = 7
    with pytest.raises(ConfigError, match="projection_dim is 7"):
        ContrastiveConfig.from_dict(data)


def test_what_siglip_model_cannot_compute_is_not_called_one() -> None:
    assert SIGLIP.is_siglip_model
    causal = dataclasses.replace(TRANSFORMER, causal=True, padding="max_length")
    others = [
        dataclasses.replace(SIGLIP, loss="clip"),
        dataclasses.replace(SIGLIP, image_pooling="mean"),
        dataclasses.replace(SIGLIP, image_projection=True),
        dataclasses.replace(SIGLIP, text=TRANSFORMER),  # padding is hidden
        dataclasses.replace(SIGLIP, text=causal),
        dataclasses.replace(SIGLIP, image=dataclasses.replace(RESNET, hidden_sizes=(8, 32))),
    ]
    assert others[-1].projection_dim == VIT.hidden_size
    assert not any(config.is_siglip_model for config in others)
