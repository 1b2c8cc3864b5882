"""Masks as COCO's run lengths, compressed to text or as a list of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_rle", "encode_rle"]

_LONGEST = 60  # bits of a run


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """H × W → {"size": [H, W], "counts": text}, COCO's compressed run lengths.

    Runs go down the columns and start with one of False, which may be empty. From the fourth on, a
    run is written as what it exceeds the run before the last by; each number in groups of five
    bits, the lowest first, a sixth bit telling that more follow, as the character 48 places on.
    """
    height, width = mask.shape
    flat = np.concatenate(([False], mask.ravel(order="F"), [not mask[-1, -1]]))
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(ends, prepend=0)
    runs[3:] -= runs[1:-2].copy()
    text = bytearray()
    for number in runs.tolist():
        more = True
        while more:
            group = number & 31
            number >>= 5
            # The topmost bit of the last group is the sign.
            more = number != (-1 if group & 16 else 0)
            text.append(48 + group + 32 * more)
    return {"size": [height, width], "counts": text.decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Run lengths, compressed or not → H × W. Raises ValueError where they do not fit the size."""
    height, width = rle["size"]
    counts = rle["counts"]
    runs = _read_counts(counts) if isinstance(counts, str) else list(counts)
    if min(height, width, *runs) < 0 or sum(runs) != height * width:
        raise ValueError(f"runs that do not add up to {height} × {width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def _read_counts(text: str) -> Sequence[int]:
    """Compressed run lengths → numbers."""
    runs: list[int] = []
    number = shift = 0
    for character in text.encode("ascii"):
        group = character - 48
        if not 0 <= group < 64 or shift > _LONGEST:
            raise ValueError("text that is not run lengths")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
