"""A dual encoder ↔ a folder; and its vision tower → PaliGemma's.

A model of SigLIP's shape is written as transformers' `SiglipModel`, under its names::

    vision_model.{embeddings, encoder, post_layernorm}.…    image_encoder.tower.vision_model.…
    vision_model.head.…                                     image_encoder.head.…
    text_model.head.…                                       text_projection.…
    text_model.{embeddings, encoder, final_layer_norm}.…    text_encoder.…
    logit_scale, logit_bias                                 the same

Every other model is written under the names of its modules, with a config.json of our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from paliglass.checkpoints.assembly import fill, parse_device, parse_dtype, weightless
from paliglass.checkpoints.folder import (
    load_model,
    load_tokenizer,
    read_tensors,
    require_layers,
    tensor_sizes,
)
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.memory import require_memory
from paliglass.checkpoints.processor import picture_config, picture_settings
from paliglass.checkpoints.saving import new_folder, write_weights
from paliglass.config import SigLipConfig
from paliglass.contrastive.config import ContrastiveConfig, ResNetConfig
from paliglass.contrastive.encoders import VisionTransformer
from paliglass.contrastive.modeling_contrastive import ContrastiveModel
from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import CheckpointError, ConfigError
from paliglass.files import read_json, write_json
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.modeling_siglip import with_positions

__all__ = [
    "initialize_vision_tower",
    "load_contrastive",
    "read_contrastive_config",
    "save_contrastive",
    "start_from_paligemma",
    "vision_weights",
]

# (SiglipModel's prefix, ours); the first that fits holds, either way.
_PREFIXES = (
    ("vision_model.head.", "image_encoder.head."),
    ("vision_model.", "image_encoder.tower.vision_model."),
    ("text_model.head.", "text_projection."),
    ("text_model.", "text_encoder."),
)


Tower = SigLipConfig | ResNetConfig


def load_contrastive(
    model_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[ContrastiveModel, ContrastiveProcessor]:
    """Model, ready for evaluation, and processor of a folder or a hub id.

    Reads what `save_contrastive` writes and transformers' `SiglipModel` folders: SigLIP, and
    SigLIP 2 of fixed size, which was trained on lower-case texts and is to be given such. Strict: a
    missing, surplus or wrongly shaped tensor is an error that names it.

    Args:
        model_path: the folder, or a hub id.
        device: "auto" (cuda, mps, cpu), or one of them.
        dtype: None or "auto" keeps the file's; or a dtype or its name to convert to.

    Raises CheckpointError: what is wrong, where, and what to do.
    """
    folder = locate(model_path, kind="dual encoder")
    config = read_contrastive_config(folder)
    processor = _load_processor(folder, config)  # before the weights, which take longer to read
    return _load_model(folder, config, device, dtype), processor


def save_contrastive(
    model: ContrastiveModel,
    folder: str | Path,
    tokenizer: Tokenizer | ContrastiveProcessor,
    dtype: str | torch.dtype | None = None,
) -> None:
    """Writes what `load_contrastive` reads, whole or not at all.

    config.json, model.safetensors, checksums.json, tokenizer.json and its settings. A model of
    SigLIP's shape (see `ContrastiveConfig.like_siglip`) can also be loaded by transformers'
    `SiglipModel.from_pretrained`, with `AutoTokenizer` and `AutoImageProcessor`.

    Args:
        model: the model; it stays as it is.
        folder: a new folder.
        tokenizer: its tokenizer, with `<pad>` and `<eos>`, or its processor.
        dtype: what to store the weights in; None: as they are.

    Raises CheckpointError where the folder holds something already.
    """
    config, torch_dtype = model.config, parse_dtype(dtype)
    processor = tokenizer
    if not isinstance(processor, ContrastiveProcessor):
        text = config.text
        processor = ContrastiveProcessor(
            tokenizer, config.image.image_size, text.max_position_embeddings, padding=text.padding
        )
    with new_folder(Path(folder)) as target:
        state = {
            _their_name(name) if config.is_siglip_model else name: (
                tensor.detach().to(torch_dtype or tensor.dtype).contiguous()
            )
            for name, tensor in model.state_dict().items()
        }
        write_weights(target, state)
        stored = str(torch_dtype or model.dtype).removeprefix("torch.")
        write_json(target / "config.json", {**config.to_dict(), "dtype": stored})
        processor.tokenizer.save(str(target / "tokenizer.json"))
        for name, data in _processor_files(processor).items():
            write_json(target / name, data)


def vision_weights(model: ContrastiveModel) -> dict[str, Tensor]:
    """The trained ViT as a state dict for `PaliGemmaForConditionalGeneration.vision_tower`.

    The pooling head stays behind: PaliGemma wants every patch. Raises CheckpointError where the
    image encoder is a ResNet, whose feature maps are no such tower.
    """
    if not isinstance(model.image_encoder, VisionTransformer):
        raise CheckpointError(
            "the dual encoder's image encoder is a ResNet; PaliGemma's vision tower is a ViT"
        )
    return model.image_encoder.tower.state_dict()


def initialize_vision_tower(
    paligemma: PaliGemmaForConditionalGeneration, model_path: str | Path
) -> None:
    """Copies a dual encoder's ViT into a PaliGemma, whose dtype and device stay as they are.

    That is how PaliGemma starts: its tower is SigLIP's (arXiv 2407.07726, stage 0).

    For pictures of another size the positions are interpolated.

    Raises CheckpointError naming another setting in which the two towers differ.
    """
    folder = locate(model_path, kind="dual encoder")
    model = _load_model(folder, read_contrastive_config(folder), "cpu", None)
    weights, ours = vision_weights(model), paligemma.config.vision_config
    _require_same_tower(model_path, model.config.image, ours)
    paligemma.vision_tower.load_state_dict(with_positions(weights, ours.patches_per_side))


def start_from_paligemma(model: ContrastiveModel, model_path: str | Path) -> None:
    """The other way round: copies a PaliGemma's vision tower into a dual encoder.

    A tower that has learned elsewhere what is in a picture needs few pairs to learn what texts
    call it (arXiv 2111.07991). Raises CheckpointError as `initialize_vision_tower` does.
    """
    paligemma = load_model(locate(model_path), "cpu")
    weights = vision_weights(model)  # raises where there is no tower
    theirs, ours = paligemma.config.vision_config, model.config.image
    _require_same_tower(model_path, theirs, ours)
    assert isinstance(ours, SigLipConfig)  # or it had no weights
    tower = with_positions(paligemma.vision_tower.state_dict(), ours.patches_per_side)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tower[name])


def _require_same_tower(source: str | Path, theirs: Tower, ours: Tower) -> None:
    """But for the pictures' size."""
    for key, value in dataclasses.asdict(ours).items():
        if key != "image_size" and getattr(theirs, key) != value:
            raise CheckpointError(
                f"{source}: its vision tower's {key} is {getattr(theirs, key)!r}, here it is "
                f"{value!r}; both must have one shape"
            )


def read_contrastive_config(folder: Path) -> ContrastiveConfig:
    """config.json, checked. Raises CheckpointError."""
    path = folder / "config.json"
    try:
        return ContrastiveConfig.from_dict(read_json(path))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _load_model(
    folder: Path,
    config: ContrastiveConfig,
    device: str | torch.device,
    dtype: str | torch.dtype | None,
) -> ContrastiveModel:
    target, torch_dtype = parse_device(device), parse_dtype(dtype)
    sizes = tensor_sizes(folder)
    require_layers(folder, [config.image, config.text], len(sizes))
    require_memory(folder.name, sizes, torch_dtype, target)
    with weightless():
        model = ContrastiveModel(config)
    fill(model, _tensors(folder, config), str(folder), torch_dtype, target)
    return model.eval()


def _tensors(folder: Path, config: ContrastiveConfig) -> Iterator[tuple[str, str, Tensor]]:
    """(our name, the file's name, tensor). Only a SiglipModel's names are translated."""
    is_theirs = read_json(folder / "config.json")["model_type"] == "siglip"
    for _, key, tensor in read_tensors(folder):
        yield _our_name(key) if is_theirs else key, key, tensor


def _our_name(key: str) -> str:
    for theirs, ours in _PREFIXES:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def _their_name(name: str) -> str:
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _load_processor(folder: Path, config: ContrastiveConfig) -> ContrastiveProcessor:
    tokenizer = load_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    if size > config.text.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {size} tokens, the text encoder {config.text.vocab_size}"
        )
    settings: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        data = read_json(path)
        for name in ("pad_token", "eos_token"):
            token = data.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise CheckpointError(f"{path}: {name} is {token!r}; it is a word")
            if token is not None:
                settings[name] = token
        settings["canonical"] = data.get("tokenizer_class") == "SiglipTokenizer"
    side = config.image.image_size
    return ContrastiveProcessor(
        tokenizer,
        side,
        config.text.max_position_embeddings,
        padding=config.text.padding,
        **settings,
        **picture_settings(folder, side),
    )


def _processor_files(processor: ContrastiveProcessor) -> dict[str, dict[str, Any]]:
    """The settings files that transformers' AutoTokenizer and AutoImageProcessor look for."""
    return {
        "preprocessor_config.json": picture_config(
            processor.image_size,
            processor.image_mean.tolist(),
            processor.image_std.tolist(),
            int(processor.resample),
        ),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": processor.pad_token,
            "eos_token": processor.eos_token,
            "clean_up_tokenization_spaces": False,
            "model_input_names": (
                ["input_ids"]
                if processor.padding == "max_length"
                else ["input_ids", "attention_mask"]
            ),
            "model_max_length": processor.max_length,
            "padding_side": "right",
        },
    }
