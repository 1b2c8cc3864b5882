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

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id")

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


def _section(where: str, data: object, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with all the keys that have no sensible default, to be taken apart."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {data!r}, not a JSON object")
    missing = [key for key in needed if key not in data]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(map(repr, missing))}")
    _only(data, "quantization_config", None)
    return dict(data)


def _only(data: dict[str, Any], key: str, *allowed: object) -> None:
    """A setting that transformers has and PaliGemma fixes: refuses any other value of it."""
    if key in data and data[key] not in allowed:
        choices = " or ".join(repr(value) for value in allowed)
        raise ConfigError(f"config key {key!r} is {data[key]!r}; paliglass has {choices}")


def _check_numbers(config: object) -> None:
    """Every number of a configuration is one, and positive; ids may be 0, caps and such None."""
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        kind = f.type if isinstance(f.type, str) else ""
        if not kind.startswith(("int", "float")) or (value is None and "None" in kind):
            continue
        if isinstance(value, tuple) and "tuple" in kind and value:
            numbers: tuple[object, ...] = value
        else:
            numbers = (value,)
        whole = kind.startswith("int")
        # Ids count from 0 (or below it: one that never comes); a softcap of 0 means none.
        any_sign = f.name in (*TOKEN_IDS, "image_token_index") or f.name.endswith("softcapping")
        for number in numbers:
            is_number = isinstance(number, int if whole else int | float)
            if isinstance(number, bool) or not is_number:
                raise ConfigError(
                    f"{f.name} is {value!r}; it must be {'an int' if whole else 'a'} number"
                )
            if not any_sign and not number > 0:  # type: ignore[operator]
                raise ConfigError(f"{f.name} is {value!r}; it must be above 0")


def _check_multiple(config: object, name: str, of: str) -> None:
    value, divisor = getattr(config, name), getattr(config, of)
    if value % divisor:
        raise ConfigError(f"{name} {value} is not a multiple of {of} {divisor}")


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
        _check_numbers(self)
        _check_multiple(self, "hidden_size", "num_attention_heads")

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
        data = _section("vision_config", data, (*SIZES, "patch_size"))
        _only(data, "model_type", "siglip_vision_model")
        _only(data, "hidden_act", "gelu_pytorch_tanh")
        left_over = ("hidden_act", "projection_dim", "num_positions", "vocab_size")
        return _from_dict(cls, data, (*left_over, "tie_word_embeddings", *TOKEN_IDS))

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
        _check_numbers(self)
        _check_multiple(self, "num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}; rotary positions turn pairs of channels"
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

    @property
    def layer_types(self) -> list[str]:
        """transformers' words for the windows of all layers."""
        windows = map(self.layer_window, range(self.num_hidden_layers))
        return ["sliding_attention" if window else "full_attention" for window in windows]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads JSON data; a sliding_window of 4096 is Gemma 2's and stands for none."""
        data = _section("text_config", data, (*SIZES, "num_key_value_heads", "vocab_size"))
        _only(data, "attention_bias", False)
        _only(data, "rope_scaling", None)
        _only(data, "use_bidirectional_attention", None, True)
        # Gemma 1's first files say "gelu" and mean the tanh form.
        _only(data, "hidden_act", "gelu_pytorch_tanh", "gelu", None)
        _only(data, "hidden_activation", "gelu_pytorch_tanh", "gelu", None)
        if data.get("rope_parameters") is not None:
            rope = _section("rope_parameters", data["rope_parameters"], ())
            _only(rope, "rope_type", "default")
            data["rope_theta"] = rope.get("rope_theta", cls.rope_theta)
        if data.get("model_type") == "gemma2":  # what holds where the file is silent
            published = cls.gemma2_2b()
            for key in ("attn_logit_softcapping", "final_logit_softcapping"):
                data.setdefault(key, getattr(published, key))
            data.setdefault("query_pre_attn_scalar", published.query_pre_attn_scalar)
        if data.get("sliding_window") == INHERITED_SLIDING_WINDOW:
            data["sliding_window"] = None
        if isinstance(data.get("eos_token_id"), list):
            data["eos_token_id"] = tuple(data["eos_token_id"])
        for key in TOKEN_IDS:
            if data.get(key, 0) is None:
                del data[key]
        left_over = (
            *("attention_bias", "hidden_act", "hidden_activation", "layer_types"),
            *("rope_parameters", "rope_scaling", "sliding_window_size", "tie_word_embeddings"),
        )
        config = _from_dict(cls, data, (*left_over, "use_bidirectional_attention"))
        types = data.get("layer_types")
        if config.sliding_window is not None and types not in (None, config.layer_types):
            raise ConfigError(
                f"config key 'layer_types' is {types!r}; Gemma 2 has {config.layer_types!r}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a transformers folder's text_config."""
        data = dataclasses.asdict(self)
        theta = data.pop("rope_theta")
        data["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        data["tie_word_embeddings"] = True
        if self.model_type == "gemma":
            data = {key: value for key, value in data.items() if value is not None}
            data["hidden_act"] = "gelu_pytorch_tanh"
        else:
            scalar = self.query_pre_attn_scalar or self.head_dim
            # transformers takes whole numbers only, and all that were published are.
            data["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
            data["hidden_activation"] = "gelu_pytorch_tanh"
            data["layer_types"] = self.layer_types
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

    def __post_init__(self) -> None:
        _check_numbers(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads config.json's data.

        Raises ConfigError naming the key that is missing, unknown or of an impossible value.
        """
        if data.get("model_type", "paligemma") != "paligemma":
            raise ConfigError(
                f"model_type is {data['model_type']!r}; paliglass loads 'paligemma' checkpoints "
                "(PaliGemma and PaliGemma 2)"
            )
        data = _section("config", data, ("vision_config", "text_config"))
        vision = SigLipConfig.from_dict(data.pop("vision_config"))
        text_data = _section("text_config", data.pop("text_config"), ())
        # The text part inherits what only the top level says.
        for key in TOKEN_IDS:
            value = data.pop(key, None)
            if value is not None:
                text_data.setdefault(key, value)
        text = GemmaConfig.from_dict(text_data)
        if data.get("projection_dim", text.hidden_size) != text.hidden_size:
            raise ConfigError(
                f"projection_dim is {data['projection_dim']}, but the decoder's hidden_size is "
                f"{text.hidden_size}: the projector must end at the decoder's width"
            )
        ids = {data.pop(key) for key in ("image_token_id", "image_token_index") if key in data}
        if len(ids) > 1:
            raise ConfigError(f"image_token_id and image_token_index differ: {sorted(ids)}")
        # The top-level hidden_size is a default of 2048 that nobody sets for PaliGemma 2.
        left_over = ("projection_dim", "hidden_size", "num_hidden_layers", "vocab_size")
        _from_dict(cls, data, (*left_over, "tie_word_embeddings", "use_bidirectional_attention"))
        return cls(vision, text, *ids)

    def replace(self, **settings: Any) -> Self:
        """A copy with some settings of the decoder, the tower or the whole changed, by name.

        A name that both parts have (hidden_size) means the decoder's. Raises ConfigError for a
        name that neither has.
        """
        text, vision, whole = (
            {f.name for f in dataclasses.fields(c)}
            for c in (GemmaConfig, SigLipConfig, PaliGemmaConfig)
        )
        unknown = sorted(set(settings) - text - vision - whole)
        if unknown:
            raise ConfigError(f"there is no setting {unknown[0]!r}")
        changed = dataclasses.replace(self, **{k: v for k, v in settings.items() if k in whole})
        of_text = {k: v for k, v in settings.items() if k in text}
        of_vision = {k: v for k, v in settings.items() if k in vision - text}
        return dataclasses.replace(
            changed,
            text_config=dataclasses.replace(changed.text_config, **of_text),
            vision_config=dataclasses.replace(changed.vision_config, **of_vision),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of a transformers folder; `from_dict` reads it, a window of 4096 excepted."""
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
