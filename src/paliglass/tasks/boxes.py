"""Boxes as PaliGemma writes them: `<locY0><locX0><locY1><locX1> label`, ` ; ` between boxes."""

from __future__ import annotations

import re
from typing import NamedTuple

BINS = 1024
_BOX = re.compile(
    r"((?:<loc(?:0\d{3}|10[01]\d|102[0-3])>){4})(?:<seg\d{3}>)*((?:(?!<loc\d{4}>)[^;])*)"
)


class Box(NamedTuple):
    """Edges in the picture's pixels: x to the right, y downwards, from the upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


class ParsedBox(NamedTuple):
    """A box found in an answer: label, edges as shares of the picture, and where it was found."""

    label: str
    box: Box
    start: int
    end: int


def encode_box(box: Box, width: float, height: float) -> str:
    """A box in a width × height picture → four location tokens."""
    shares = (box.y0 / height, box.x0 / width, box.y1 / height, box.x1 / width)
    return "".join(f"<loc{round(min(max(s, 0), 1) * (BINS - 1)):04}>" for s in shares)


def parse_boxes(answer: str) -> list[ParsedBox]:
    """All well-formed boxes of an answer, in order; the rest is passed over. Never raises.

    Edges come as shares of width and height in [0, 1]; a box without area is not well-formed.
    """
    found = []
    for match in _BOX.finditer(answer):
        y0, x0, y1, x1 = (int(n) / (BINS - 1) for n in re.findall(r"\d{4}", match[1]))
        if x1 > x0 and y1 > y0:
            span = match.start(), match.start() + len(match[0].rstrip())
            found.append(ParsedBox(match[2].strip(), Box(x0, y0, x1, y1), *span))
    return found
