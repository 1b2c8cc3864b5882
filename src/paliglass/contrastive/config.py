"""The shapes of a dual encoder: which image encoder, which text encoder, where the two meet.

- `SigLipConfig` (from paliglass.config) or `ResNetConfig`: the image encoder
- `TextTransformerConfig` or `CbowConfig`: the text encoder
- `ContrastiveConfig`: the two, their projections and the loss

`from_dict` refuses keys it does not know. It reads config.json as `to_dict` writes it, and that of
transformers' `SiglipModel`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from paliglass.checkpoints.config_json import (
    from_fields,
    only,
    section,
    siglip_from_json,
    siglip_to_json,
)
from paliglass.config import SIZES, TOKEN_IDS, SigLipConfig, check_multiple, check_numbers
from paliglass.errors import ConfigError

__all__ = [
    "CbowConfig",
    "ContrastiveConfig",
    "ImagePooling",
    "Padding",
    "ResNetConfig",
    "TextTransformerConfig",
]

MODEL_TYPE = "paliglass_contrastive"

Loss = Literal["clip", "siglip"]
ImagePooling = Literal["attention", "mean"]
Padding = Literal["longest", "max_length"]
Activation = Literal["gelu_pytorch_tanh", "quick_gelu"]

# What transformers' SigLIP configurations mean where the published files are silent.
_SIGLIP_BASE = dict(zip(SIZES, (768, 3072, 12, 12), strict=True))


def _one_of(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network of basic blocks (arXiv 1512.03385). Defaults: 18 layers, half as wide.

    hidden_sizes: channels of each stage; depths: its blocks. Every stage but the first halves the
    picture's side, and so do the stem's convolution and its pooling.
    """

    hidden_sizes: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_channels: int = 3
    image_size: int = 128

    def __post_init__(self) -> None:
        check_numbers(self)
        if len(self.hidden_sizes) != len(self.depths):
            raise ConfigError(
                f"hidden_sizes {self.hidden_sizes} and depths {self.depths}: one each for a stage"
            )

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage: the width of what the encoder returns."""
        return self.hidden_sizes[-1]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        data = section("image_config", data, ("hidden_sizes", "depths"))
        lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
        return from_fields(cls, data | lists)

    def to_dict(self) -> dict[str, Any]:
        lists = {"hidden_sizes": list(self.hidden_sizes), "depths": list(self.depths)}
        return {"model_type": "resnet", **dataclasses.asdict(self), **lists}


@dataclass(frozen=True)
class TextTransformerConfig:
    """A Transformer over tokens with learned positions. The defaults are SigLIP base's.

    causal: each token sees its past alone, as in CLIP.
    padding: "max_length" is SigLIP's way: every text fills all positions, and the padding is
        attended to like a word. With "longest" padding is invisible.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    layer_norm_eps: float = 1e-6
    hidden_act: Activation = "gelu_pytorch_tanh"
    causal: bool = False
    padding: Padding = "max_length"

    def __post_init__(self) -> None:
        check_numbers(self)
        check_multiple(self, "hidden_size", "num_attention_heads")
        _one_of("hidden_act", self.hidden_act, Activation)
        _one_of("padding", self.padding, Padding)
        _one_of("causal", self.causal, Literal[True, False])

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return from_fields(cls, section("text_config", data, (*SIZES, "vocab_size")))

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "text_transformer", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class CbowConfig:
    """A bag of words: embeddings that are averaged (CBOW, arXiv 1301.3781). Their order is lost."""

    vocab_size: int = 32000
    hidden_size: int = 768
    max_position_embeddings: int = 64  # longer texts are cut, as for the Transformer

    padding: ClassVar[Padding] = "longest"  # it has no say in the mean

    def __post_init__(self) -> None:
        check_numbers(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return from_fields(cls, section("text_config", data, ("vocab_size", "hidden_size")))

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "cbow", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class ContrastiveConfig:
    """Two encoders and the joint space of width `projection_dim` where their outputs are compared.

    Args:
        image, text: the encoders.
        projection_dim: d_e, the width of both embeddings.
        loss: "clip" (softmax over the batch) or "siglip" (a sigmoid for each pair).
        image_pooling: how a ViT's patches become one vector: "attention" (SigLIP's head with a
            learned probe) or their "mean". A ResNet always takes the mean.
        image_projection: whether there is a W_i. SigLIP has none: its head ends in the joint space.
        projection_bias: whether the projections have biases. CLIP's have none, SigLIP's W_t has.
    """

    image: SigLipConfig | ResNetConfig
    text: TextTransformerConfig | CbowConfig
    projection_dim: int
    loss: Loss = "siglip"
    image_pooling: ImagePooling = "attention"
    image_projection: bool = True
    projection_bias: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        _one_of("loss", self.loss, Loss)
        _one_of("image_pooling", self.image_pooling, ImagePooling)
        if not self.image_projection and self.image.hidden_size != self.projection_dim:
            raise ConfigError(
                f"projection_dim is {self.projection_dim}, but without image_projection it is the "
                f"image encoder's hidden_size, {self.image.hidden_size}"
            )

    @classmethod
    def like_siglip(cls, image: SigLipConfig, text: TextTransformerConfig) -> Self:
        """SigLIP's own shape: what `SiglipModel` of transformers can load."""
        return cls(image, text, image.hidden_size, image_projection=False, projection_bias=True)

    @property
    def is_siglip_model(self) -> bool:
        """Whether transformers' `SiglipModel` computes the same: it decides the file's layout."""
        return (
            isinstance(self.image, SigLipConfig)
            and isinstance(self.text, TextTransformerConfig)
            and self == self.like_siglip(self.image, self.text)
            and (self.text.padding, self.text.causal) == ("max_length", False)
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads config.json's data, ours or that of a `SiglipModel`.

        Raises ConfigError naming the key that is missing, unknown or of an impossible value.
        """
        kind = data.get("model_type")
        if kind == "siglip":
            return cls._from_siglip_model(data)
        if kind != MODEL_TYPE:
            raise ConfigError(
                f"model_type is {kind!r}; dual encoders are 'siglip' (transformers' SiglipModel) "
                f"or {MODEL_TYPE!r}"
            )
        data = section("config", data, ("image_config", "text_config", "projection_dim"))
        image, text = data.pop("image_config"), data.pop("text_config")
        section("image_config", image, ("model_type",))
        section("text_config", text, ("model_type",))
        only(image, "model_type", "siglip_vision_model", "resnet")
        only(text, "model_type", "text_transformer", "cbow")
        is_resnet = image["model_type"] == "resnet"
        text_class = CbowConfig if text["model_type"] == "cbow" else TextTransformerConfig
        data["image"] = ResNetConfig.from_dict(image) if is_resnet else siglip_from_json(image)
        data["text"] = text_class.from_dict(text)
        return from_fields(cls, data)

    @classmethod
    def _from_siglip_model(cls, data: dict[str, Any]) -> Self:
        data = section("config", data, ("vision_config", "text_config"))
        image, text = (section(k, data.pop(k), ()) for k in ("vision_config", "text_config"))
        image = {**_SIGLIP_BASE, "patch_size": 16} | image
        text = {**_SIGLIP_BASE, "vocab_size": 32000} | text
        only(image, "vision_use_head", True)
        only(text, "model_type", "siglip_text_model")
        only(text, "hidden_act", "gelu_pytorch_tanh")
        # The ids are transformers' defaults for CLIP; the tokenizer knows the real ones.
        for key in (*TOKEN_IDS, "tie_word_embeddings"):
            text.pop(key, None)
        projection_dim = text.pop("projection_size", None) or text["hidden_size"]
        from_fields(_Siglip, data, (*TOKEN_IDS, "tie_word_embeddings", "initializer_factor"))
        return cls(
            siglip_from_json(image),
            TextTransformerConfig.from_dict(text),
            projection_dim,
            image_projection=False,
            projection_bias=True,
        )

    def to_dict(self) -> dict[str, Any]:
        """config.json's data: a `SiglipModel`'s where that computes the same, else our own."""
        if self.is_siglip_model:
            text = self.text.to_dict()
            del text["causal"], text["padding"]
            text |= {"model_type": "siglip_text_model", "projection_size": self.projection_dim}
            return {
                "architectures": ["SiglipModel"],
                "model_type": "siglip",
                "text_config": text,
                "vision_config": _image_to_json(self.image) | {"vision_use_head": True},
            }
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        image, text = _image_to_json(data.pop("image")), data.pop("text").to_dict()
        return {"model_type": MODEL_TYPE, **data, "image_config": image, "text_config": text}


def _image_to_json(config: SigLipConfig | ResNetConfig) -> dict[str, Any]:
    return siglip_to_json(config) if isinstance(config, SigLipConfig) else config.to_dict()


@dataclass(frozen=True)
class _Siglip:
    """The top level of a `SiglipModel`'s config.json has no settings of its own."""
