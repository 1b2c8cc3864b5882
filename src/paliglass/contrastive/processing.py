"""Pictures and texts → a dual encoder's inputs.

- a picture is squashed to the model's square with Pillow's bicubic filter and scaled to [−1, 1]
- a text gets an end-of-text token and padding on the right; what is too long is cut before it
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, normalizers, processors
from torch import Tensor

from paliglass.contrastive.config import Padding
from paliglass.errors import CheckpointError, PromptError
from paliglass.pictures import Picture, load_picture

__all__ = ["ContrastiveProcessor"]

_CANONICAL: list[normalizers.Normalizer] = [
    normalizers.Lowercase(),
    normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), ""),
    normalizers.Replace(Regex(r"\s+"), " "),
    normalizers.Strip(),
]


class ContrastiveProcessor:
    """Makes a dual encoder's inputs.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, or one of transformers' fast tokenizers; it is copied.
            One that adds no tokens by itself is made to add `eos_token`.
        image_size: side of the model's square, in pixels.
        max_length: tokens of the longest text, the end included.
        padding: to the batch's "longest" text or always to "max_length".
        canonical: make the tokenizer take texts as SigLIP was trained on them: in lower case,
            without punctuation.
        pad_token, eos_token: as the tokenizer calls them.
        image_mean, image_std: what is subtracted from numbers in [0, 1], and what divides them.
        resample: Pillow's filter.

    Raises CheckpointError where the tokenizer lacks one of the two tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_size: int,
        max_length: int,
        *,
        padding: Padding = "longest",
        canonical: bool = False,
        pad_token: str = "<pad>",
        eos_token: str = "<eos>",
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        resample: int = Image.Resampling.BICUBIC,
    ) -> None:
        given: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self.tokenizer = Tokenizer.from_str(given.to_str())
        pad, eos = (self.tokenizer.token_to_id(token) for token in (pad_token, eos_token))
        for token, found in ((pad_token, pad), (eos_token, eos)):
            if found is None:
                raise CheckpointError(f"the tokenizer has no {token}; name its own")
        if not self.tokenizer.num_special_tokens_to_add(is_pair=False):
            self.tokenizer.post_processor = processors.TemplateProcessing(
                single=f"$A {eos_token}", special_tokens=[(eos_token, eos)]
            )
        if canonical:
            as_it_was = self.tokenizer.normalizer
            self.tokenizer.normalizer = normalizers.Sequence(
                [*_CANONICAL, as_it_was] if as_it_was else _CANONICAL
            )
        self.tokenizer.encode_special_tokens = True  # "<eos>" in a text is five letters
        self.tokenizer.enable_truncation(max_length)
        length = max_length if padding == "max_length" else None
        self.tokenizer.enable_padding(pad_id=pad, pad_token=pad_token, length=length)
        self.image_size = image_size
        self.max_length = max_length
        self.padding = padding
        self.pad_token, self.eos_token = pad_token, eos_token
        self.image_mean = np.asarray(image_mean, dtype=np.float32)
        self.image_std = np.asarray(image_std, dtype=np.float32)
        self.resample = Image.Resampling(resample)

    def pixels(self, picture: Picture) -> Tensor:
        """A picture → 3 × S × S, float32, [−1, 1] with the usual mean and deviation."""
        square = load_picture(picture).resize((self.image_size,) * 2, self.resample)
        values = np.asarray(square, dtype=np.float32) * np.float32(1 / 255)
        values = (values - self.image_mean) / self.image_std
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """B texts → input_ids and attention_mask (0 on padding), B × T, int64."""
        try:
            rows = self.tokenizer.encode_batch(list(texts))
        except TypeError:
            raise PromptError("a text cannot be written as UTF-8, or is none") from None
        return {
            "input_ids": torch.tensor([row.ids for row in rows]),
            "attention_mask": torch.tensor([row.attention_mask for row in rows]),
        }
