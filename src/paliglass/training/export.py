"""Writes a model as a folder that transformers' `from_pretrained` reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.training.tokenizer import save_tokenizer


def export(
    model: PaliGemmaForConditionalGeneration,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """config.json, model.safetensors in `dtype`, the tokenizer and the picture processor."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {  # the output layer is the embedding table: stored once
        name: parameter.detach().to(dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)
    side = model.config.vision_config.image_size
    picture = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": model.config.num_image_tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    config = {**model.config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    for name, data in (("config.json", config), ("preprocessor_config.json", picture)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
