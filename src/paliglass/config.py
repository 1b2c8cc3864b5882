"""The shapes of a PaliGemma: frozen dataclasses whose field names are the checkpoint's JSON keys.

- `SigLipConfig`    the vision tower (a ViT, arXiv 2010.11929, trained as in arXiv 2303.15343)
- `GemmaConfig`     the decoder: Gemma (arXiv 2403.08295) or Gemma 2 (arXiv 2408.00118)
- `PaliGemmaConfig` the two and what joins them (arXiv 2407.07726, 2412.03555)
- `PRESETS`         every published size, and `tiny` for tests and lessons

`from_dict` refuses keys it does not know: a misspelt or unsupported setting must never pass in
silence. Keys that cannot change the model's arithmetic are named in `IGNORED_KEYS`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from paliglass.errors import ConfigError

# What transformers writes beside the architecture: provenance, generation defaults, training.
IGNORED_KEYS = frozenset(
    """
    _attn_implementation_autoset _name_or_path _vocab_size add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label ignore_index initializer_range
    is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_image_tokens num_return_sequences
    output_attentions output_hidden_states output_scores prefix problem_type
    projector_hidden_act pruned_heads quantization_config remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_bidirectional_attention
    use_cache vision_use_head
    """.split()
)

# Gemma 2's text-only default. PaliGemma 2 was trained with full attention, yet its JSON files
# inherit this value; it is the one window that a checkpoint is not believed about.
INHERITED_SLIDING_WINDOW = 4096


C = TypeVar("C")


def _from_dict(cls: type[C], data: dict[str, Any], also_ignored: tuple[str, ...] = ()) -> C:
    """Builds `cls` from JSON data, refusing keys that are neither fields nor ignorable."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known - IGNORED_KEYS - set(also_ignored))
    if unknown:
        raise ConfigError(
            f"{cls.__name__}: unknown key {', '.join(map(repr, unknown))}; "
            "this implementation does not have such a setting"
        )
    return cls(**{key: value for key, value in data.items() if key in known})


def _need_keys(where: str, data: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Sizes have no sensible default: another reader of the file may assume another one."""
    missing = [key for key in keys if key not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(map(repr, missing))}")


SIZE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _require(data: dict[str, Any], key: str, allowed: tuple[object, ...]) -> None:
    """A setting that transformers has and PaliGemma fixes: refuse any other value of it."""
    if key in data and data[key] not in allowed:
        choices = " or ".join(repr(value) for value in allowed)
        raise ConfigError(f"config key {key!r} is {data[key]!r}; PaliGemma has {choices}")


@dataclass(frozen=True)
class SigLipConfig:
    """The vision tower. The defaults are So400m/14 at 224 pixels, PaliGemma's own."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def patches_per_side(self) -> int:
        # A remainder is cut off, as a convolution of stride patch_size does (448 / 14 has none).
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """P: one image token each. 256 at 224 pixels, 1024 at 448, 4096 at 896."""
        return self.patches_per_side**2

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        _need_keys("vision_config", data, (*SIZE_KEYS, "patch_size"))
        _require(data, "model_type", ("siglip_vision_model",))
        _require(data, "hidden_act", ("gelu_pytorch_tanh",))
        return _from_dict(cls, data, also_ignored=("hidden_act", "projection_dim"))

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": "siglip_vision_model",
            **dataclasses.asdict(self),
            "hidden_act": "gelu_pytorch_tanh",
            "vision_use_head": False,
        }


@dataclass(frozen=True)
class GemmaConfig:
    """The decoder. The defaults are Gemma 2B; `model_type="gemma2"` adds Gemma 2's parts.

    Query heads share keys and values in groups::

        heads            q q q q q q q q     q q q q q q q q     q q q q q q q q
                         | | | | | | | |     |_| |_| |_| |_|     |_|_|_|_|_|_|_|
        key/value heads  k k k k k k k k      k   k   k   k             k
                         multi-head (MHA)    grouped (GQA)       multi-query (MQA)
                         K = H               Gemma 2             Gemma 2B: K = 1
    """

    model_type: str = "gemma"
    vocab_size: int = 257216
    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    query_pre_attn_scalar: float | None = None  # None: head_dim
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None  # None: full attention, as PaliGemma was trained
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    bos_token_id: int = 2

    def __post_init__(self) -> None:
        if self.model_type not in ("gemma", "gemma2"):
            raise ConfigError(
                f"text model_type is {self.model_type!r}; PaliGemma has 'gemma' or 'gemma2'"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by: 1/√256 in most sizes, 1/√144 in the 28B model."""
        return 1 / math.sqrt(self.query_pre_attn_scalar or self.head_dim)

    @property
    def has_post_norms(self) -> bool:
        """Gemma 2 also normalises what attention and MLP return, before the residual sum."""
        return self.model_type == "gemma2"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    def layer_window(self, layer: int) -> int | None:
        """The window of a layer, where one was asked for: Gemma 2 alternates, even layers first."""
        return self.sliding_window if layer % 2 == 0 else None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        data = dict(data)
        _need_keys("text_config", data, (*SIZE_KEYS, "num_key_value_heads", "vocab_size"))
        _require(data, "attention_bias", (False,))
        # Gemma 1's first files say "gelu" and mean the tanh form.
        for key in ("hidden_act", "hidden_activation"):
            _require(data, key, ("gelu_pytorch_tanh", "gelu", None))
        rope = data.pop("rope_parameters", None) or {}
        _require(rope, "rope_type", ("default",))
        if "rope_theta" in rope:
            data["rope_theta"] = rope["rope_theta"]
        _require(data, "rope_scaling", (None,))
        if data.get("model_type") == "gemma2":  # what holds where the file is silent
            published = GemmaConfig.gemma2_2b()
            for key in ("attn_logit_softcapping", "final_logit_softcapping"):
                data.setdefault(key, getattr(published, key))
            data.setdefault("query_pre_attn_scalar", published.query_pre_attn_scalar)
        if data.get("sliding_window") == INHERITED_SLIDING_WINDOW:
            data["sliding_window"] = None
        if isinstance(data.get("eos_token_id"), list):
            data["eos_token_id"] = tuple(data["eos_token_id"])
        for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
            if key in data and data[key] is None:
                del data[key]
        return _from_dict(
            cls,
            data,
            also_ignored=(
                *("attention_bias", "hidden_act", "hidden_activation", "rope_scaling"),
                *("layer_types", "tie_word_embeddings"),
            ),
        ).checked_as(data)

    def checked_as(self, data: dict[str, Any]) -> Self:
        """Refuses a pattern of windowed layers other than Gemma 2's own."""
        types = data.get("layer_types")
        if self.sliding_window and types is not None:
            expected = [
                "sliding_attention" if self.layer_window(layer) else "full_attention"
                for layer in range(self.num_hidden_layers)
            ]
            if list(types) != expected:
                raise ConfigError(
                    f"config key 'layer_types' is {types!r}; Gemma 2 has {expected!r}"
                )
        return self

    def to_dict(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        theta = data.pop("rope_theta")
        data["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        data["tie_word_embeddings"] = True
        if self.model_type == "gemma":
            data = {key: value for key, value in data.items() if value is not None}
            data["hidden_act"] = "gelu_pytorch_tanh"
        else:
            data["query_pre_attn_scalar"] = self.query_pre_attn_scalar or self.head_dim
            data["hidden_activation"] = "gelu_pytorch_tanh"
            data["layer_types"] = [
                "sliding_attention" if self.layer_window(layer) else "full_attention"
                for layer in range(self.num_hidden_layers)
            ]
        return data

    @classmethod
    def gemma2_2b(cls) -> Self:
        return cls(
            model_type="gemma2",
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            query_pre_attn_scalar=256,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
        )


@dataclass(frozen=True)
class PaliGemmaConfig:
    """A vision tower, a decoder, and the id that marks where image features go."""

    vision_config: SigLipConfig = field(default_factory=SigLipConfig)
    text_config: GemmaConfig = field(default_factory=GemmaConfig)
    image_token_index: int = 257152

    @property
    def num_image_tokens(self) -> int:
        """Image tokens per picture: one for each patch."""
        return self.vision_config.num_patches

    @property
    def real_vocab_size(self) -> int:
        """Ids below this one are words; the rest must never be sampled.

        `<image>` closes PaliGemma's vocabulary at 257 152, and transformers' files pad the table
        to the next multiple of 64 with rows that mean nothing.
        """
        vocab = self.text_config.vocab_size
        return self.image_token_index if 0 <= vocab - self.image_token_index <= 64 else vocab

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        if data.get("model_type", "paligemma") != "paligemma":
            raise ConfigError(
                f"model_type is {data['model_type']!r}; paliglass loads 'paligemma' checkpoints "
                "(PaliGemma and PaliGemma 2)"
            )
        parts = dict(data)
        _need_keys("config", parts, ("vision_config", "text_config"))
        vision = SigLipConfig.from_dict(parts.pop("vision_config"))
        text_data = dict(parts.pop("text_config"))
        # The text part inherits what only the top level says.
        for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
            if parts.pop(key, None) is not None:
                text_data.setdefault(key, data[key])
        text = GemmaConfig.from_dict(text_data)
        if data.get("projection_dim", text.hidden_size) != text.hidden_size:
            raise ConfigError(
                f"projection_dim is {data['projection_dim']}, but the decoder's hidden_size is "
                f"{text.hidden_size}: the projector must end at the decoder's width"
            )
        parts["image_token_index"] = parts.pop(
            "image_token_id", parts.get("image_token_index", cls.image_token_index)
        )
        rest = _from_dict(
            cls,
            parts,
            # The top-level hidden_size is a default of 2048 that nobody sets for PaliGemma 2.
            also_ignored=("projection_dim", "hidden_size", "vocab_size", "tie_word_embeddings"),
        )
        return dataclasses.replace(rest, vision_config=vision, text_config=text)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a transformers folder; `from_dict` reads it back equal."""
        text, vision = self.text_config, self.vision_config
        return {
            "architectures": ["PaliGemmaForConditionalGeneration"],
            "model_type": "paligemma",
            "image_token_index": self.image_token_index,
            "projection_dim": text.hidden_size,
            "hidden_size": text.hidden_size,
            "vocab_size": text.vocab_size,
            "pad_token_id": text.pad_token_id,
            "eos_token_id": text.eos_token_id,
            "bos_token_id": text.bos_token_id,
            "tie_word_embeddings": True,
            "text_config": {**text.to_dict(), "num_image_tokens": self.num_image_tokens},
            "vision_config": {**vision.to_dict(), "projection_dim": text.hidden_size},
        }


def _presets() -> dict[str, PaliGemmaConfig]:
    gemma2_2b = GemmaConfig.gemma2_2b()
    decoders = {
        "paligemma-3b": GemmaConfig(),
        "paligemma2-3b": gemma2_2b,
        "paligemma2-10b": dataclasses.replace(
            gemma2_2b,
            hidden_size=3584,
            intermediate_size=14336,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
        ),
        "paligemma2-28b": dataclasses.replace(
            gemma2_2b,
            hidden_size=4608,
            intermediate_size=36864,
            num_hidden_layers=46,
            num_attention_heads=32,
            num_key_value_heads=16,
            head_dim=128,
            query_pre_attn_scalar=144,
        ),
    }
    presets = {
        f"{name}-{size}": PaliGemmaConfig(SigLipConfig(image_size=size), decoder)
        for name, decoder in decoders.items()
        for size in (224, 448, 896)
    }
    presets["tiny"] = PaliGemmaConfig(
        SigLipConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=56,
        ),
        GemmaConfig(
            vocab_size=320,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
        ),
        image_token_index=319,
    )
    return presets


PRESETS = _presets()
