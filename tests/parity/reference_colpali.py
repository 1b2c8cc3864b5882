"""transformers' ColPali and its processor, with the tiny model's words and pixels."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from PIL import Image
from tests.tiny import noise_picture, tiny_processor
from tokenizers import Tokenizer
from torch import Tensor

SIDE, PLACES = 56, 16
QUERIES = ["dog", "invoice total ; café 犬!", "  two  spaces\n", "a cap and an Englishman's dog"]


def reference_processor(padding_side: str = "left") -> Any:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_processor().tokenizer.to_str()),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )
    pixels = transformers.SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        resample=transformers.image_utils.PILImageResampling.BICUBIC,
    )
    pixels.image_seq_length = PLACES
    return transformers.ColPaliProcessor(pixels, fast)


def pictures() -> list[Image.Image]:
    return [noise_picture(seed=1), noise_picture(60, 40, seed=2), Image.new("RGB", (9, 9), "red")]


def their_pages(theirs: Any) -> Tensor:
    with torch.inference_mode():
        return theirs(**reference_processor().process_images(pictures())).embeddings


def their_queries(theirs: Any) -> Tensor:
    with torch.inference_mode():
        return theirs(**reference_processor().process_queries(QUERIES)).embeddings
