"""Writes a checkpoint of a published size with random weights, in the transformers layout.

    python -m workshop.random_checkpoint paligemma-3b-224 /path/to/folder
    python -m workshop.random_checkpoint paligemma-3b-224 /path/to/folder --divide 3

For timing and parity at full size without the gated weights, with a tokenizer of as many words, so
that it can be served: mini's, and made-up ones that no text is cut into. One tensor is made at a
time, so the model is never held in memory: peak use is that of the largest tensor. `--divide` takes
so many times fewer layers and words: matrices keep their shapes and their share of the work, so
that engines can be compared with each other where the whole model does not fit several times.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tokenizers import Tokenizer

from paliglass.checkpoints.assembly import expected_shapes, skeleton
from paliglass.checkpoints.config_json import paligemma_to_json
from paliglass.checkpoints.hub import locate
from paliglass.checkpoints.processor import write_processor
from paliglass.checkpoints.saving import new_folder
from paliglass.config import PRESETS, PaliGemmaConfig
from paliglass.files import write_json
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tensors import file_header
from workshop.commands import run

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Norm weights near what they are at rest, matrices that keep the size of what they map."""
    if "norm" in name or name.endswith("bias"):
        at_rest = 1.0 if name.endswith("weight") and "layer_norm" in name else 0.0
        return at_rest + 0.02 * torch.randn(shape, generator=generator)
    fan_in = shape[1:].numel() if "embed" not in name else shape[-1]
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def divided(config: PaliGemmaConfig, parts: int) -> PaliGemmaConfig:
    """The same widths with so many times fewer layers and words."""
    text, vision = config.text_config, config.vision_config
    words = max(51, round(text.vocab_size / parts / 64)) * 64  # no fewer than mini's
    return replace(
        config,
        image_token_index=min(config.image_token_index, words - 1),
        text_config=replace(
            text, num_hidden_layers=-(-text.num_hidden_layers // parts), vocab_size=words
        ),
        vision_config=replace(vision, num_hidden_layers=-(-vision.num_hidden_layers // parts)),
    )


def padded_tokenizer(config: PaliGemmaConfig) -> Tokenizer:
    """mini's, with made-up words before its added tokens, so that `<image>` has the model's id."""
    data = json.loads((locate("mini") / "tokenizer.json").read_text("utf-8"))
    words = data["model"]["vocab"]
    added = [token for token in data["added_tokens"] if token["id"] >= len(words)]
    moved = config.image_token_index - added[-1]["id"]  # it is the last
    words |= {f"<{i}>": i for i in range(len(words), len(words) + moved)}
    for token in added:
        token["id"] += moved
    return Tokenizer.from_str(json.dumps(data))


def random_checkpoint(
    preset: Annotated[str, typer.Argument(help=f"One of {', '.join(sorted(PRESETS))}.")],
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option()] = "bfloat16",
    divide: Annotated[
        int, typer.Option(min=1, help="So many times fewer layers and words, of equal widths.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Write a checkpoint of a published size with random weights, in transformers' layout."""
    if preset not in PRESETS:
        raise typer.BadParameter(f"{preset} is none of {', '.join(sorted(PRESETS))}")
    config = PRESETS[preset] if divide == 1 else divided(PRESETS[preset], divide)
    torch_dtype = DTYPES[dtype]
    shapes = expected_shapes(skeleton(config))

    header = file_header({name: (torch_dtype, s) for name, s in shapes.items()}, {"format": "pt"})
    generator = torch.Generator().manual_seed(seed)
    with new_folder(folder) as target:
        write_json(target / "config.json", {**paligemma_to_json(config), "dtype": dtype})
        with (target / "model.safetensors").open("wb") as file:
            file.write(header)
            for name, shape in shapes.items():
                tensor = random_tensor(name, shape, generator).to(torch_dtype)
                file.write(tensor.flatten().view(torch.uint8).numpy().data)
        processor = PaliGemmaProcessor(
            padded_tokenizer(config), config.num_image_tokens, config.vision_config.image_size
        )
        write_processor(processor, target)
    size = sum(shape.numel() for shape in shapes.values()) * torch_dtype.itemsize
    print(f"{folder}: {size / 1e9:.2f} GB of {preset} in {dtype}")


if __name__ == "__main__":
    run(random_checkpoint)
