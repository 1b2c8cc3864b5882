"""Masks of a data set → `<seg>` tokens, many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from paliglass.data.pictures import Frame
from paliglass.errors import PaliglassError
from paliglass.tasks.boxes import Box
from paliglass.tasks.masks import crop_mask

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["MaskEncoder"]

_AT_ONCE = 128


class MaskEncoder:
    """Collects masks, and knows the 16 tokens of each in the end.

    Args:
        codec: None refuses the first mask.
    """

    def __init__(self, codec: MaskCodec | None) -> None:
        self._codec = codec
        self._waiting: list[NDArray[np.float32]] = []
        self._codes: list[str] = []

    def add(self, mask: NDArray[np.bool_], box: Box, frame: Frame | None = None) -> int | None:
        """The number of a mask's tokens in what `finish` gives; None without a pixel in its box.

        Args:
            mask: H × W.
            box: what its tokens are relative to, in pixels, inside the picture.
            frame: what turns the mask with its picture.

        Raises PaliglassError without a codec.
        """
        if self._codec is None:
            raise PaliglassError("masks take a model with a mask codec (mini has one)")
        crop = crop_mask(mask, box)
        if not crop.any():
            return None
        self._waiting.append(crop if frame is None else frame.mask(crop))
        number = len(self._codes) + len(self._waiting) - 1
        if len(self._waiting) == _AT_ONCE:
            self._encode()
        return number

    def finish(self) -> list[str]:
        """The tokens of every mask."""
        self._encode()
        return self._codes

    def _encode(self) -> None:
        if self._codec is None or not self._waiting:
            return
        device = next(self._codec.parameters()).device
        with torch.inference_mode():
            codes = self._codec.encode(torch.from_numpy(np.stack(self._waiting)).to(device))
        self._codes += ["".join(f"<seg{code:03}>" for code in row) for row in codes.tolist()]
        self._waiting = []
