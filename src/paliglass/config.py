"""The shapes of a PaliGemma: frozen dataclasses whose field names are the checkpoint's JSON keys.

- `SigLipConfig`    the vision tower (a ViT, arXiv 2010.11929, trained as in arXiv 2303.15343)
- `GemmaConfig`     the decoder: Gemma (arXiv 2403.08295) or Gemma 2 (arXiv 2408.00118)
- `PaliGemmaConfig` the two and what joins them (arXiv 2407.07726, 2412.03555)
- `PRESETS`         every published size, and `tiny` for tests and lessons

`checkpoints.config_json` reads and writes them as config.json has them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Self

from paliglass.errors import ConfigError

__all__ = [
    "PRESETS",
    "SIZES",
    "TOKEN_IDS",
    "GemmaConfig",
    "PaliGemmaConfig",
    "SigLipConfig",
    "check_multiple",
    "check_numbers",
]

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id")
# What a file may claim, before any of it is built; far above every published model. No tensor of
# such a size overflows what torch counts in, and so many layers without weights take four seconds.
MOST = {
    **dict.fromkeys(("num_hidden_layers", "depths"), 1 << 8),
    **dict.fromkeys(("num_channels", "patch_size"), 1 << 10),
    "num_attention_heads": 1 << 12,
    **dict.fromkeys(("head_dim", "image_size"), 1 << 16),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 1 << 24),
    **dict.fromkeys((*TOKEN_IDS, "image_token_index"), 1 << 31),
}
MOST_OTHER, MOST_FLOAT = 1 << 20, 1e12


def check_numbers(config: object) -> None:
    """Every number of a configuration is one, positive and no more than `MOST`.

    Ids may be 0, caps and such None. Raises ConfigError that names the setting.
    """
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        kind = f.type if isinstance(f.type, str) else ""
        if not kind.startswith(("int", "float", "tuple[int")) or (value is None and "None" in kind):
            continue
        if isinstance(value, tuple) and "tuple" in kind and value:
            numbers: tuple[object, ...] = value
        else:
            numbers = (value,)
        whole = not kind.startswith("float")
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
            most = MOST.get(f.name, MOST_OTHER) if whole else MOST_FLOAT
            if not abs(number) <= most:  # type: ignore[arg-type]
                raise ConfigError(f"{f.name} is {value!r:.40}; at most {most:,} is read")


def check_multiple(config: object, name: str, of: str) -> None:
    """Raises ConfigError where one setting is no multiple of another."""
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
        check_numbers(self)
        check_multiple(self, "hidden_size", "num_attention_heads")

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
    pad_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1
    bos_token_id: int = 2

    def __post_init__(self) -> None:
        if self.model_type not in ("gemma", "gemma2"):
            raise ConfigError(
                f"text model_type is {self.model_type!r}; PaliGemma has 'gemma' or 'gemma2'"
            )
        check_numbers(self)
        check_multiple(self, "num_attention_heads", "num_key_value_heads")
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

    def __post_init__(self) -> None:
        check_numbers(self)

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
