"""Examples → the batches that a model is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paliglass.data.example import SPECIAL_TOKENS_IN_PREFIX, Example
from paliglass.errors import PictureError, from_workers
from paliglass.processing_paligemma import PaliGemmaProcessor

__all__ = ["Batch", "Rows", "batches"]

Batch = dict[str, Tensor]
LoadedExample = tuple[Example, list[Tensor], str]
"""An example, the pixels of its pictures, and what was wrong with one that it stands in for."""


class Rows(Dataset[LoadedExample]):
    """Example `index` with its pixels. A broken picture gives way to the next whole one."""

    def __init__(self, examples: Sequence[Example], processor: PaliGemmaProcessor) -> None:
        self.examples, self.processor = examples, processor

    def __getitem__(self, index: int) -> LoadedExample:
        broken = ""
        for offset in range(len(self.examples)):
            example = self.examples[(index + offset) % len(self.examples)]
            try:
                return example, [self.processor.pixels(image) for image in example.images], broken
            except PictureError as error:
                broken = broken or f"{example.where}: {error}"
        raise PictureError(f"not one of the {len(self.examples)} pictures can be read: {broken}")

    def collate(self, rows: Sequence[LoadedExample]) -> tuple[Batch, list[str]]:
        """Rows → a batch, and what was wrong."""
        batch = self.processor.words(
            [example.prefix for example, _, _ in rows],
            [len(pixels) for _, pixels, _ in rows],
            [example.suffix for example, _, _ in rows],
            allow_special_tokens=SPECIAL_TOKENS_IN_PREFIX,
        )
        batch["pixel_values"] = torch.stack([one for _, pixels, _ in rows for one in pixels])
        return batch, [broken for _, _, broken in rows if broken]


def batches(
    examples: Sequence[Example],
    processor: PaliGemmaProcessor,
    order: Iterator[list[int]],
    workers: int = 0,
) -> Iterator[tuple[Batch, list[str]]]:
    """Batches of the rows that `order` names, prepared by worker processes, and complaints."""
    rows = Rows(examples, processor)
    loader = DataLoader(rows, batch_sampler=order, collate_fn=rows.collate, num_workers=workers)
    with from_workers():
        yield from loader
