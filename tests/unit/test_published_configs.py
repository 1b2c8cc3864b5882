"""config.json as others have written it: each key is understood, or known to be harmless."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import transformers

from paliglass import PRESETS, PaliGemmaConfig
from paliglass.checkpoints.config_json import paligemma_from_json

PALIGEMMA_3B_PT_224 = """{
  "_vocab_size": 257152, "architectures": ["PaliGemmaForConditionalGeneration"],
  "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048, "ignore_index": -100,
  "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0,
  "projection_dim": 2048,
  "text_config": {"hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma",
    "num_attention_heads": 8, "num_hidden_layers": 18, "num_image_tokens": 256,
    "num_key_value_heads": 1, "torch_dtype": "float32", "vocab_size": 257216},
  "torch_dtype": "float32", "transformers_version": "4.41.0.dev0",
  "vision_config": {"hidden_size": 1152, "intermediate_size": 4304,
    "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
    "num_image_tokens": 256, "patch_size": 14, "projection_dim": 2048,
    "projector_hidden_act": "gelu_fast", "torch_dtype": "float32", "vision_use_head": false}
}"""


def paligemma2(text: dict[str, Any], size: int) -> dict[str, Any]:
    """The keys that transformers' converter leaves in a PaliGemma 2 folder."""
    tokens = (size // 14) ** 2
    width = text["hidden_size"]
    return {
        "_vocab_size": 257152,
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_size": 2048,
        "image_token_index": 257152,
        "model_type": "paligemma",
        "num_hidden_layers": text["num_hidden_layers"],
        "pad_token_id": 0,
        "projection_dim": width,
        "text_config": {
            "architectures": ["Gemma2ForCausalLM"],
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],
            "final_logit_softcapping": 30.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "model_type": "gemma2",
            "num_image_tokens": tokens,
            "sliding_window": 4096,
            "torch_dtype": "bfloat16",
            "vocab_size": 257216,
            **text,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.0.dev0",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": size,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_image_tokens": tokens,
            "num_positions": 256,
            "patch_size": 14,
            "projection_dim": width,
            "torch_dtype": "bfloat16",
            "vision_use_head": False,
        },
    }


def ends_at(config: PaliGemmaConfig, *eos: int) -> PaliGemmaConfig:
    return config.replace(eos_token_id=eos)


def test_paligemma_1() -> None:
    config = paligemma_from_json(json.loads(PALIGEMMA_3B_PT_224))
    assert config == PRESETS["paligemma-3b-224"]


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("name", ["3b", "10b", "28b"])
def test_paligemma_2(name: str, size: int) -> None:
    preset = PRESETS[f"paligemma2-{name}-{size}"]
    keys = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "query_pre_attn_scalar"),
    )
    text = {key: getattr(preset.text_config, key) for key in keys}
    config = paligemma_from_json(paligemma2(text, size))
    assert config == ends_at(preset, 1, 107)


def test_what_transformers_assumes_where_nothing_is_said() -> None:
    theirs = transformers.PaliGemmaConfig().to_dict()
    config = paligemma_from_json(theirs)
    text = dataclasses.replace(PRESETS["paligemma-3b-224"].text_config, vocab_size=257152)
    # Its default MLP is 4096 wide; no published model's is.
    vision = dataclasses.replace(PRESETS["paligemma-3b-224"].vision_config, intermediate_size=4096)
    assert config == PaliGemmaConfig(vision, text, image_token_index=256000)
