"""Configurations: the published numbers, and nothing that is not understood."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import GEMMA2, tiny_config

import paliglass
from paliglass import PRESETS, SigLipConfig
from paliglass.checkpoints import load_hf_model
from paliglass.checkpoints.assembly import skeleton
from paliglass.checkpoints.config_json import (
    gemma_from_json,
    gemma_to_json,
    paligemma_from_json,
    paligemma_to_json,
)
from paliglass.config import GemmaConfig, PaliGemmaConfig
from paliglass.contrastive.config import CbowConfig, ResNetConfig, TextTransformerConfig
from paliglass.errors import ConfigError, PaliglassError
from paliglass.inspect.info import describe, read_info

# hidden, layers, MLP, query heads, key/value heads, head_dim, the queries' scale is this ^ -1/2
DECODERS = {
    "paligemma-3b": (2048, 18, 16384, 8, 1, 256, 256),
    "paligemma2-3b": (2304, 26, 9216, 8, 4, 256, 256),
    "paligemma2-10b": (3584, 42, 14336, 16, 8, 256, 256),
    "paligemma2-28b": (4608, 46, 36864, 32, 16, 128, 144),
}
IMAGE_TOKENS = {224: 256, 448: 1024, 896: 4096}
PUBLISHED = [(name, size) for name in DECODERS for size in IMAGE_TOKENS]


def test_every_published_size_is_a_preset() -> None:
    assert set(PRESETS) == {f"{name}-{size}" for name, size in PUBLISHED} | {"tiny"}


@pytest.mark.parametrize(("name", "size"), PUBLISHED)
def test_published_numbers(name: str, size: int) -> None:
    config = PRESETS[f"{name}-{size}"]
    text, vision = config.text_config, config.vision_config
    hidden, layers, mlp, heads, kv_heads, head_dim, scalar = DECODERS[name]
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (
        *(hidden, layers, mlp),
    )
    assert (text.num_attention_heads, text.num_key_value_heads) == (heads, kv_heads)
    assert text.head_dim == head_dim
    assert text.query_scale == pytest.approx(scalar**-0.5)
    assert text.has_post_norms == name.startswith("paligemma2")
    caps = (50.0, 30.0) if text.has_post_norms else (None, None)
    assert (text.attn_logit_softcapping, text.final_logit_softcapping) == caps
    assert (text.rope_theta, text.rms_norm_eps) == (10_000, 1e-6)
    assert text.vocab_size == 257_216
    assert config.image_token_index == 257_152
    assert (text.pad_token_id, text.eos_token_ids, text.bos_token_id) == (0, (1,), 2)
    assert (vision.hidden_size, vision.num_hidden_layers) == (1152, 27)
    assert (vision.intermediate_size, vision.num_attention_heads) == (4304, 16)
    assert (vision.head_dim, vision.layer_norm_eps) == (72, 1e-6)
    assert config.num_image_tokens == IMAGE_TOKENS[size]


def vision_parameters(image_tokens: int) -> int:
    width, mlp = 1152, 4304
    patches = width * 3 * 14 * 14 + width + image_tokens * width
    attention = 4 * (width * width + width)
    layer = attention + (width * mlp + mlp) + (mlp * width + width) + 4 * width
    return patches + 27 * layer + 2 * width


def decoder_parameters(name: str) -> int:
    hidden, layers, mlp, heads, kv_heads, head_dim, _ = DECODERS[name]
    norms = 4 if name.startswith("paligemma2") else 2
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    return 257_216 * hidden + layers * (attention + 3 * hidden * mlp + norms * hidden) + hidden


@pytest.mark.parametrize("name", DECODERS)
def test_parameter_counts(name: str) -> None:
    width = DECODERS[name][0]
    expected = vision_parameters(256) + (1152 * width + width) + decoder_parameters(name)
    found = sum(p.numel() for p in skeleton(PRESETS[f"{name}-224"]).parameters())
    assert found == expected
    if name == "paligemma-3b":
        assert found == 2_923_466_480  # the published figure


def test_larger_pictures_cost_position_embeddings_alone() -> None:
    small, large = (
        sum(p.numel() for p in skeleton(PRESETS[f"paligemma-3b-{size}"]).parameters())
        for size in (224, 896)
    )
    assert large - small == (4096 - 256) * 1152


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    assert paligemma_from_json(paligemma_to_json(PRESETS[name])) == PRESETS[name]


def test_json_round_trip_of_unusual_settings() -> None:
    unusual = tiny_config(**GEMMA2, eos_token_id=(1, 7), rope_theta=5000.0, head_dim=24)
    assert paligemma_from_json(paligemma_to_json(unusual)) == unusual


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "num_experts", 8),
        ("text_config", "num_atention_heads", 8),
        ("text_config", "hidden_activation", "relu"),
        ("text_config", "attention_bias", True),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2}),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}),
        ("text_config", "model_type", "gemma3_text"),
        ("text_config", "num_key_value_heads", 3),
        ("vision_config", "hidden_act", "gelu"),
        ("vision_config", "model_type", "clip_vision_model"),
        ("vision_config", "num_attention_heads", 5),
        ("vision_config", "use_class_token", True),
        (None, "model_type", "llava"),
        (None, "projection_dim", 17),
    ],
)
def test_what_is_not_understood_is_refused_by_name(part: str | None, key: str, value: Any) -> None:
    data = paligemma_to_json(PRESETS["tiny"])
    (data if part is None else data[part])[key] = value
    with pytest.raises(ConfigError) as error:
        paligemma_from_json(data)
    named = "rope_type" if key == "rope_parameters" else key
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_missing_size_is_refused_by_name(part: str) -> None:
    data = paligemma_to_json(PRESETS["tiny"])
    del data[part]["hidden_size"]
    with pytest.raises(ConfigError, match="hidden_size"):
        paligemma_from_json(data)
    del data[part]
    with pytest.raises(ConfigError, match=part):
        paligemma_from_json(data)


def test_head_dim_is_its_own_setting() -> None:
    """Gemma 2B's heads are as wide as width / H says; those of Gemma 2 are not."""
    wide = dataclasses.replace(PRESETS["tiny"].text_config, head_dim=40)
    model = skeleton(dataclasses.replace(PRESETS["tiny"], text_config=wide))
    attention = model.language_model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (4 * 40, 48)
    assert attention.o_proj.weight.shape == (48, 4 * 40)


def test_published_gemma2_files_leave_gemma2s_defaults_out() -> None:
    text = gemma_to_json(tiny_config(**GEMMA2).text_config)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"):
        del text[key]
    read = gemma_from_json(text)
    assert (read.attn_logit_softcapping, read.final_logit_softcapping) == (50.0, 30.0)
    assert read.query_pre_attn_scalar == 256


def test_no_cap_stays_no_cap() -> None:
    text = gemma_to_json(tiny_config(**GEMMA2).text_config) | {"final_logit_softcapping": None}
    assert gemma_from_json(text).final_logit_softcapping is None


def test_the_window_all_gemma2_files_inherit_is_not_believed_and_no_other_is_read() -> None:
    text = gemma_to_json(tiny_config(**GEMMA2).text_config)
    assert text["sliding_window"] is None
    assert gemma_from_json(text | {"sliding_window": 4096}) == gemma_from_json(text)
    with pytest.raises(ConfigError, match="'sliding_window' is 8; paliglass has None or 4096"):
        gemma_from_json(text | {"sliding_window": 8})


def test_the_top_level_width_is_not_believed() -> None:
    """It is a default of 2048 that PaliGemma 2's files never set."""
    data = paligemma_to_json(PRESETS["paligemma2-3b-224"]) | {"hidden_size": 2048}
    assert paligemma_from_json(data).text_config.hidden_size == 2304


def test_configurations_are_values() -> None:
    assert SigLipConfig() == SigLipConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        SigLipConfig().hidden_size = 1  # type: ignore[misc]


def sizes(config: type) -> list[str]:
    """The settings of a configuration that are numbers."""
    return [f.name for f in dataclasses.fields(config) if str(f.type).startswith(("int", "float"))]


CONFIGS = (SigLipConfig, GemmaConfig, PaliGemmaConfig, TextTransformerConfig, CbowConfig)


@pytest.mark.parametrize(
    ("config", "name"), [(config, name) for config in CONFIGS for name in sizes(config)]
)
def test_a_size_that_no_model_has_is_refused_by_name(config: type, name: str) -> None:
    for claim in (2**62, 10**30, 10**400, -(2**62), math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"^{name} is "):
            config(**{name: claim})


@pytest.mark.parametrize("name", ["hidden_sizes", "depths"])
def test_a_stage_that_no_network_has_is_refused_by_name(name: str) -> None:
    for claim in (2**31, 10**30):
        with pytest.raises(ConfigError, match=f"^{name} is "):
            ResNetConfig(**{name: (2, 2, claim, 2)})


def test_the_largest_claims_that_are_read_can_be_counted() -> None:
    """Nothing of them overflows, and none of it takes memory."""
    vision = SigLipConfig(1 << 20, 1 << 20, 1, 1 << 12, 1 << 10, 1 << 16, 1)
    text = GemmaConfig("gemma", 1 << 24, 1 << 20, 1 << 20, 1, 1 << 12, 1 << 12, 1 << 16)
    assert describe(PaliGemmaConfig(vision, text, 1 << 23)).total_parameters > 1 << 52
    deep = dataclasses.replace(PRESETS["tiny"].text_config, num_hidden_layers=1 << 8)
    assert describe(PaliGemmaConfig(SigLipConfig(), deep)).total_parameters > 1 << 20


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 257),
        ("hidden_size", 2**40),
        ("intermediate_size", 2**63),
        ("num_attention_heads", 10**9),
    ],
)
def test_claims_of_a_file_are_refused_before_anything_is_built(
    folder: Path, part: str, name: str, claim: int
) -> None:
    data = json.loads((folder / "config.json").read_text())
    data[part][name] = claim
    (folder / "config.json").write_text(json.dumps(data))
    for read in (read_info, load_hf_model, paliglass.load):
        with pytest.raises(PaliglassError, match=f"{name} is {claim}; at most "):
            read(folder)
