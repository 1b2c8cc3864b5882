"""config.json of a transformers folder ↔ the dataclasses of `paliglass.config`.

Reading refuses keys that it does not know: a misspelt or unsupported setting must never pass in
silence. Keys that cannot change the model's arithmetic are named in `IGNORED_KEYS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from paliglass.config import (
    SIZES,
    TOKEN_IDS,
    GemmaConfig,
    PaliGemmaConfig,
    SigLipConfig,
)
from paliglass.errors import ConfigError

__all__ = [
    "DUAL_ENCODERS",
    "from_fields",
    "gemma_from_json",
    "gemma_to_json",
    "is_colpali",
    "only",
    "paligemma_from_json",
    "paligemma_to_json",
    "section",
    "siglip_from_json",
    "siglip_to_json",
]

DUAL_ENCODERS = ("siglip", "paliglass_contrastive")
"""What config.json of a dual encoder says it is: transformers' `SiglipModel`, or ours."""

# What transformers writes beside the architecture: provenance, generation defaults, training.
IGNORED_KEYS = frozenset(
    """
    _attn_implementation_autoset _name_or_path _vocab_size add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label ignore_index initializer_range
    is_composition is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_image_tokens
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type
    projector_hidden_act pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id use_bfloat16 use_cache vision_use_head
    """.split()
)

# Gemma 2's text-only default. PaliGemma 2 was trained with full attention, yet its JSON files
# inherit this value; it is the one window that a checkpoint is not believed about.
INHERITED_SLIDING_WINDOW = 4096

C = TypeVar("C")


def from_fields(cls: type[C], data: dict[str, Any], also_ignored: tuple[str, ...] = ()) -> C:
    """Builds `cls` from JSON data, refusing keys that are neither fields nor ignorable."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known - IGNORED_KEYS - set(also_ignored))
    if unknown:
        raise ConfigError(
            f"{cls.__name__}: unknown key {', '.join(map(repr, unknown))}; "
            "this implementation does not have such a setting"
        )
    return cls(**{key: value for key, value in data.items() if key in known})


def section(where: str, data: object, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with all the keys that have no sensible default, to be taken apart."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {data!r}, not a JSON object")
    missing = [key for key in needed if key not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(map(repr, missing))}")
    only(data, "quantization_config", None)
    return dict(data)


def only(data: dict[str, Any], key: str, *allowed: object) -> None:
    """A setting that transformers has and PaliGemma fixes: refuses any other value of it."""
    if key in data and data[key] not in allowed:
        choices = " or ".join(repr(value) for value in allowed)
        raise ConfigError(f"config key {key!r} is {data[key]!r}; paliglass has {choices}")


def siglip_from_json(data: dict[str, Any]) -> SigLipConfig:
    """Reads a vision_config. Raises ConfigError naming the key."""
    data = section("vision_config", data, (*SIZES, "patch_size"))
    only(data, "model_type", "siglip_vision_model")
    only(data, "hidden_act", "gelu_pytorch_tanh")
    left_over = ("hidden_act", "projection_dim", "num_positions", "vocab_size")
    return from_fields(SigLipConfig, data, (*left_over, "tie_word_embeddings", *TOKEN_IDS))


def siglip_to_json(config: SigLipConfig) -> dict[str, Any]:
    """The vision_config of a transformers folder."""
    return {
        "model_type": "siglip_vision_model",
        **dataclasses.asdict(config),
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": False,
    }


def gemma_from_json(data: dict[str, Any]) -> GemmaConfig:
    """Reads a text_config. Raises ConfigError naming the key."""
    data = section("text_config", data, (*SIZES, "num_key_value_heads", "vocab_size"))
    only(data, "attention_bias", False)
    only(data, "rope_scaling", None)
    only(data, "use_bidirectional_attention", None, True)
    # Gemma 1's first files say "gelu" and mean the tanh form.
    only(data, "hidden_act", "gelu_pytorch_tanh", "gelu", None)
    only(data, "hidden_activation", "gelu_pytorch_tanh", "gelu", None)
    # No published PaliGemma was trained with a window, yet PaliGemma 2's files inherit this value.
    only(data, "sliding_window", None, INHERITED_SLIDING_WINDOW)
    if data.get("rope_parameters") is not None:
        rope = section("rope_parameters", data["rope_parameters"], ())
        only(rope, "rope_type", "default")
        unknown = sorted(set(rope) - {"rope_type", "rope_theta"})
        if unknown:
            raise ConfigError(f"rope_parameters: unknown key {', '.join(map(repr, unknown))}")
        data["rope_theta"] = rope.get("rope_theta", GemmaConfig.rope_theta)
    if data.get("model_type") == "gemma2":  # what holds where the file is silent
        published = GemmaConfig.gemma2_2b()
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            data.setdefault(key, getattr(published, key))
        data.setdefault("query_pre_attn_scalar", published.query_pre_attn_scalar)
    if isinstance(data.get("eos_token_id"), list):
        data["eos_token_id"] = tuple(data["eos_token_id"])
    for key in TOKEN_IDS:
        if data.get(key, 0) is None:
            del data[key]
    ignored = (
        *("attention_bias", "hidden_act", "hidden_activation", "layer_types", "rope_parameters"),
        *("rope_scaling", "sliding_window", "sliding_window_size", "tie_word_embeddings"),
    )
    return from_fields(GemmaConfig, data, (*ignored, "use_bidirectional_attention"))


def gemma_to_json(config: GemmaConfig) -> dict[str, Any]:
    """The text_config of a transformers folder."""
    data = dataclasses.asdict(config)
    theta = data.pop("rope_theta")
    data["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    data["tie_word_embeddings"] = True
    if config.model_type == "gemma":
        data = {key: value for key, value in data.items() if value is not None}
        data["hidden_act"] = "gelu_pytorch_tanh"
    else:
        scalar = config.query_pre_attn_scalar or config.head_dim
        # transformers takes whole numbers only, and all that were published are.
        data["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        data["hidden_activation"] = "gelu_pytorch_tanh"
        # transformers gives every second layer a window unless told otherwise.
        data["layer_types"] = ["full_attention"] * config.num_hidden_layers
        data["sliding_window"] = None
    return data


def is_colpali(data: dict[str, Any]) -> bool:
    """Whether config.json is ColPali's, in transformers' layout or colpali-engine's."""
    return data.get("model_type") == "colpali" or data.get("architectures") == ["ColPali"]


def paligemma_from_json(data: dict[str, Any]) -> PaliGemmaConfig:
    """Reads config.json's data.

    Raises ConfigError naming the key that is missing, unknown or of an impossible value.
    """
    if is_colpali(data):
        raise ConfigError(
            "is a ColPali, which finds pages and writes nothing; `paliglass search DOCUMENTS TEXT "
            "--model …` uses it, in Python paliglass.retrieval.load_colpali"
        )
    if data.get("model_type") in DUAL_ENCODERS:
        raise ConfigError(
            "is a dual encoder, which compares and writes nothing; `paliglass embed`, search, "
            "classify, similarity and info take it"
        )
    if data.get("model_type", "paligemma") != "paligemma":
        raise ConfigError(
            f"model_type is {data['model_type']!r}; paliglass loads 'paligemma' checkpoints "
            "(PaliGemma and PaliGemma 2)"
        )
    data = section("config", data, ("vision_config", "text_config"))
    vision = siglip_from_json(data.pop("vision_config"))
    text_data = section("text_config", data.pop("text_config"), ())
    # The text part inherits what only the top level says.
    for key in TOKEN_IDS:
        value = data.pop(key, None)
        if value is not None:
            text_data.setdefault(key, value)
    text = gemma_from_json(text_data)
    if data.get("projection_dim", text.hidden_size) != text.hidden_size:
        raise ConfigError(
            f"projection_dim is {data['projection_dim']}, but the decoder's hidden_size is "
            f"{text.hidden_size}: the projector must end at the decoder's width"
        )
    ids = {data.pop(key) for key in ("image_token_id", "image_token_index") if key in data}
    if len(ids) > 1:
        raise ConfigError(f"image_token_id and image_token_index differ: {sorted(ids)}")
    # The top-level hidden_size is a default of 2048 that nobody sets for PaliGemma 2.
    ignored = ("projection_dim", "hidden_size", "num_hidden_layers", "vocab_size")
    from_fields(
        PaliGemmaConfig, data, (*ignored, "tie_word_embeddings", "use_bidirectional_attention")
    )
    return PaliGemmaConfig(vision, text, *ids)


def paligemma_to_json(config: PaliGemmaConfig) -> dict[str, Any]:
    """config.json of a transformers folder, which `paligemma_from_json` reads."""
    text, vision = config.text_config, config.vision_config
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": config.image_token_index,
        "projection_dim": text.hidden_size,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "pad_token_id": text.pad_token_id,
        "eos_token_id": text.eos_token_id,
        "bos_token_id": text.bos_token_id,
        "tie_word_embeddings": True,
        "text_config": {**gemma_to_json(text), "num_image_tokens": config.num_image_tokens},
        "vision_config": {**siglip_to_json(vision), "projection_dim": text.hidden_size},
    }
