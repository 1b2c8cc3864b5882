"""The mask codec: a mask inside its box <-> 16 `<seg>` tokens (PaliGemma, arXiv 2407.07726)."""

from __future__ import annotations

from paliglass.segmentation.codec import MaskCodec, MaskCodecConfig
from paliglass.segmentation.masks import crop_mask, paste_mask

__all__ = ["MaskCodec", "MaskCodecConfig", "crop_mask", "paste_mask"]
