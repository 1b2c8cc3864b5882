"""Pages and queries → ColPali's inputs, as transformers' ColPaliProcessor makes them.

    page    <image> × N  <bos>  Describe the image.  \\n
    query                <bos>  Question: …  <pad> × 10  \\n

The ten `<pad>` are tokens like others, which the model has learned to fill with what else a page
that answers might say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paliglass.errors import PromptError
from paliglass.pictures import Picture
from paliglass.processing_paligemma import PaliGemmaProcessor

__all__ = ["ColPaliProcessor"]

NUM_AUGMENTATION_TOKENS = 10


class ColPaliProcessor:
    """Makes ColPali's inputs.

    Args:
        processor: PaliGemma's.
        visual_prompt_prefix: what is said of every page.
        query_prefix: what stands before every query.
    """

    def __init__(
        self,
        processor: PaliGemmaProcessor,
        visual_prompt_prefix: str = "Describe the image.",
        query_prefix: str = "Question: ",
    ) -> None:
        self.processor = processor
        self.visual_prompt_prefix = visual_prompt_prefix
        self.query_prefix = query_prefix

    def images(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """B pictures → input_ids and attention_mask (B × T) and pixel_values (B × 3 × S × S)."""
        row = self.processor.encode_prefix(self.visual_prompt_prefix)
        batch = self.processor.pad([row] * len(pictures))
        batch["pixel_values"] = torch.stack([self.processor.pixels(some) for some in pictures])
        return batch

    def queries(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """B texts → input_ids and attention_mask, B × Q, padded on the left.

        Raises PromptError for an empty one.
        """
        return self.processor.pad([self._encode(text) for text in texts])

    def words(self, text: str) -> slice:
        """Which of a query's tokens are the user's own: those between the prefix and `<pad>`."""
        row = self._encode(text)
        prefix = [self.processor.bos_token_id]
        prefix += self.processor.encode_plain(self.query_prefix.rstrip())
        # A space goes with the word after it; a prefix that does not end a token is part of a word.
        same = (ours == theirs for ours, theirs in zip(prefix, row, strict=False))
        start = next((i for i, is_same in enumerate(same) if not is_same), len(prefix))
        return slice(start, row.index(self.processor.pad_token_id))

    def _encode(self, text: str) -> list[int]:
        if not text.strip():
            raise PromptError("the query is empty")
        pads = [self.processor.pad_token_id] * NUM_AUGMENTATION_TOKENS
        words = self.processor.encode_plain(self.query_prefix + text)
        newline = self.processor.encode_plain("\n")
        return [self.processor.bos_token_id, *words, *pads, *newline]
