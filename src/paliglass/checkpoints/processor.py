"""A folder's tokenizer and picture settings → the processor, and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from paliglass.checkpoints.folder import load_tokenizer
from paliglass.config import PaliGemmaConfig
from paliglass.errors import CheckpointError
from paliglass.files import read_json, write_json
from paliglass.processing_paligemma import IMAGE_TOKEN, PaliGemmaProcessor

__all__ = [
    "load_processor",
    "make_processor",
    "picture_config",
    "picture_settings",
    "write_processor",
]


def load_processor(folder: Path, config: PaliGemmaConfig) -> PaliGemmaProcessor:
    """The processor that a transformers folder asks for.

    Raises CheckpointError naming file and setting, where it asks for what PaliGemma does not do.
    """
    return make_processor(
        load_tokenizer(folder),
        config,
        folder,
        **picture_settings(folder, config.vision_config.image_size),
    )


def make_processor(
    tokenizer: Tokenizer, config: PaliGemmaConfig, source: Path, **settings: Any
) -> PaliGemmaProcessor:
    """A processor whose words are the model's; `source` is named where they are not."""
    side = config.vision_config.image_size
    try:
        processor = PaliGemmaProcessor(tokenizer, config.num_image_tokens, side, **settings)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    if processor.image_token_id != config.image_token_index:
        raise CheckpointError(
            f"{source}: the tokenizer's {IMAGE_TOKEN} is {processor.image_token_id}, the model's "
            f"image_token_index {config.image_token_index}"
        )
    ends = config.text_config.eos_token_ids
    if processor.eos_token_id not in ends:
        raise CheckpointError(
            f"{source}: the tokenizer's <eos> is {processor.eos_token_id}, the model ends at "
            f"{', '.join(map(str, ends))}: answers would never end"
        )
    return processor


def picture_settings(folder: Path, side: int) -> dict[str, Any]:
    """image_mean, image_std and resample of a folder, where it has them; the rest is checked.

    side: the model's square, in pixels. Raises CheckpointError naming file and setting.
    """
    path = folder / "preprocessor_config.json"
    data: Any = {}
    if path.exists():
        data = read_json(path)
    elif (folder / "processor_config.json").exists():  # where transformers 5 puts it
        path = folder / "processor_config.json"
        data = read_json(path).get("image_processor", {})
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: image_processor is {data!r}; it is a JSON object")
    square = {"height": side, "width": side}
    factor = data.get("rescale_factor", 1 / 255)
    fixed = {
        "do_resize": data.get("do_resize", True) is True,
        "do_rescale": data.get("do_rescale", True) is True,
        "do_normalize": data.get("do_normalize", True) is True,
        "rescale_factor": _is_number(factor) and math.isclose(factor, 1 / 255, rel_tol=1e-6),
        "size": data.get("size", square) == square,
        "resample": type(data.get("resample", 3)) is int and data.get("resample", 3) in range(6),
        "image_mean": _is_colour(data.get("image_mean", [0.5] * 3), lowest=-1e3),
        "image_std": _is_colour(data.get("image_std", [0.5] * 3), lowest=1e-3),
    }
    for key, good in fixed.items():
        if not good:
            raise CheckpointError(
                f"{path}: {key} is {data[key]!r}; this model takes pictures squashed to "
                f"{side} × {side}, scaled by 1/255, three numbers each for mean and deviation"
            )
    return {key: data[key] for key in ("image_mean", "image_std", "resample") if key in data}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_colour(value: object, lowest: float) -> bool:
    """Three numbers that are no less than `lowest`, nor beyond all sense: then float32 has them."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_is_number(v) and lowest <= v <= 1e3 for v in value)
    )


def picture_config(side: int, mean: list[float], std: list[float], resample: int) -> dict[str, Any]:
    """What transformers' SiglipImageProcessor is told about pictures."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": None,
        "image_mean": mean,
        "image_std": std,
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }


def write_processor(
    processor: PaliGemmaProcessor, folder: Path, processor_class: str = "PaliGemmaProcessor"
) -> None:
    """tokenizer.json, and the settings from which transformers' AutoProcessor builds its own."""
    settings: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": {
            "image_seq_length": processor.num_image_tokens,
            **picture_config(
                processor.image_size,
                processor.image_mean.tolist(),
                processor.image_std.tolist(),
                int(processor.resample),
            ),
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": {"image_token": IMAGE_TOKEN},
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "model_max_length": 1_000_000_000,
        },
    }
    processor.tokenizer.save(str(folder / "tokenizer.json"))
    for name, data in settings.items():
        write_json(folder / name, {"processor_class": processor_class, **data})
