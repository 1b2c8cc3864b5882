"""Small models, batches, pictures and a tokenizer, made on the spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from torch import Tensor

from paliglass import PRESETS, PaliGemmaConfig
from paliglass.layers.losses import IGNORE
from paliglass.modeling_paligemma import PaliGemmaForConditionalGeneration
from paliglass.processing_paligemma import PaliGemmaProcessor

TINY = PRESETS["tiny"]
GEMMA2 = {
    "model_type": "gemma2",
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 12,  # not head_dim, as in the 28B model
    "attn_logit_softcapping": 5.0,  # low enough to bite
    "final_logit_softcapping": 3.0,
}


def tiny_config(**text: Any) -> PaliGemmaConfig:
    """The tiny preset with some of its decoder's settings changed."""
    return dataclasses.replace(TINY, text_config=dataclasses.replace(TINY.text_config, **text))


def randomise(model: torch.nn.Module, std: float = 0.2, seed: int = 0) -> None:
    """Fills every parameter, norms and biases too, so that a forgotten one shows.

    The last norm turns half of the channels round: else the tied output layer would make the model
    say its last word over and over, and greedy tokens would compare nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=std, generator=generator)
            if name.endswith(".norm.weight"):
                parameter.mul_(5).sub_(1)  # its scale is 1 + weight


def tiny_model(
    config: PaliGemmaConfig = TINY, std: float = 0.2, seed: int = 0
) -> PaliGemmaForConditionalGeneration:
    model = PaliGemmaForConditionalGeneration(config).eval()
    randomise(model, std, seed)
    return model


def make_batch(
    config: PaliGemmaConfig,
    prefix_lengths: Sequence[int],
    suffix_lengths: Sequence[int] | None = None,
    pictures: Sequence[int] | None = None,
    side: str = "left",
    seed: int = 0,
) -> dict[str, Tensor]:
    """A processor's batch with random words: one row a prompt, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    suffixes = suffix_lengths or [0] * len(prefix_lengths)
    counts = pictures or [1] * len(prefix_lengths)
    rows, types = [], []
    for prefix, suffix, count in zip(prefix_lengths, suffixes, counts, strict=True):
        places = torch.full((count * config.num_image_tokens,), config.image_token_index)
        words = torch.randint(3, config.image_token_index, (prefix + suffix,), generator=generator)
        rows.append(torch.cat((places, words)))
        types.append(torch.tensor([0] * (len(rows[-1]) - suffix) + [1] * suffix))

    def pad(parts: list[Tensor], fill: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, True, fill, padding_side=side)

    edge = config.vision_config.image_size
    batch = {
        "input_ids": pad(rows, 0),
        "attention_mask": pad([torch.ones_like(row) for row in rows], 0),
        "token_type_ids": pad(types, 0),
        "pixel_values": torch.rand(sum(counts), 3, edge, edge, generator=generator) * 2 - 1,
    }
    if suffix_lengths is not None:
        is_suffix = batch["token_type_ids"] == 1
        batch["labels"] = batch["input_ids"].masked_fill(~is_suffix, IGNORE)
    return batch


def row_alone(batch: dict[str, Tensor], row: int, pictures: Sequence[int]) -> dict[str, Tensor]:
    """One row of a batch, without its padding and the others' pictures."""
    keep = batch["attention_mask"][row].bool()
    start = sum(pictures[:row])
    alone = {k: v[row][keep][None] for k, v in batch.items() if k != "pixel_values"}
    return alone | {"pixel_values": batch["pixel_values"][start : start + pictures[row]]}


def tiny_tokenizer() -> Tokenizer:
    """Byte-pair encoding in Gemma's style, a few merges, PaliGemma's special tokens not yet in."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = [chr(i) for i in range(33, 127)]
    merges = [
        ("▁", "c"),
        ("a", "p"),
        ("▁c", "ap"),
        ("e", "n"),
        ("▁", "en"),
        ("d", "o"),
        ("do", "g"),
    ]
    pieces = [
        *(f"<0x{i:02X}>" for i in range(256)),
        "\n",
        "▁",
        *letters,
        "é",
        *map("".join, merges),
    ]
    vocabulary = {token: i for i, token in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def tiny_processor(num_image_tokens: int = 16, image_size: int = 56) -> PaliGemmaProcessor:
    return PaliGemmaProcessor(tiny_tokenizer(), num_image_tokens, image_size)


def worded_config(**text: Any) -> PaliGemmaConfig:
    """A tiny configuration whose vocabulary is that of `tiny_tokenizer` with PaliGemma's tokens."""
    image_token = tiny_processor().image_token_id
    config = tiny_config(vocab_size=image_token + 1, **text)
    return dataclasses.replace(config, image_token_index=image_token)


def noise_picture(width: int = 97, height: int = 131, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
