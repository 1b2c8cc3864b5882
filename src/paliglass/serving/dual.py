"""Vectors of texts and pictures, from a dual encoder in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paliglass.contrastive.folders import load_contrastive
from paliglass.serving.pictures import PictureReader, is_address

__all__ = ["Dual"]


class Dual:
    """A dual encoder, to be loaded before it is asked."""

    def __init__(self, name: str, device: str = "auto") -> None:
        self._name, self._device = name, device
        self._thread = ThreadPoolExecutor(1, "dual")

    def load(self) -> None:
        """Raises CheckpointError."""
        self.model, self.processor = load_contrastive(self._name, self._device)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def embed(
        self, inputs: Sequence[str], pictures: PictureReader
    ) -> tuple[NDArray[np.float32], int]:
        """N texts and pictures' addresses → N × D of unit length, and the texts' tokens."""
        is_picture = [is_address(text) for text in inputs]
        pixels = []
        for text, found in zip(inputs, is_picture, strict=True):
            if found:
                data = await pictures.read(text)
                pixels.append(
                    await pictures.work(lambda data=data: self.processor.pixels(data))  # type: ignore[misc]
                )
        words = [text for text, found in zip(inputs, is_picture, strict=True) if not found]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._embed, is_picture, pixels, words)

    @torch.inference_mode()
    def _embed(
        self, is_picture: Sequence[bool], pixels: list[torch.Tensor], words: Sequence[str]
    ) -> tuple[NDArray[np.float32], int]:
        found: dict[bool, list[Any]] = {True: [], False: []}
        tokens = 0
        if pixels:
            stacked = torch.stack(pixels).to(self.model.device)
            found[True] = list(self.model.embed_images(stacked).float().cpu())
        if words:
            ids = self.processor.words(words)
            tokens = int(ids["attention_mask"].sum())
            there = {name: tensor.to(self.model.device) for name, tensor in ids.items()}
            found[False] = list(self.model.embed_texts(**there).float().cpu())
        rows = [found[kind].pop(0) for kind in is_picture]
        return torch.stack(rows).numpy(), tokens
