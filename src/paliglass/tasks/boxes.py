"""Boxes as PaliGemma writes them: `<locY0><locX0><locY1><locX1> label`, ` ; ` between boxes.

In an answer to `segment` 16 `<seg>` tokens, the codes of the mask, stand between box and label.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = [
    "BINS",
    "MASK_TOKENS",
    "Box",
    "ParsedBox",
    "clip_box",
    "encode_box",
    "has_area",
    "parse_boxes",
]

BINS = 1024
MASK_TOKENS = 16
_LOCATION = r"<loc(?:0\d{3}|10[01]\d|102[0-3])>"
_CODE = r"<seg(?:0\d{2}|1[01]\d|12[0-7])>"
# Of a longer run of location tokens the last four are the box: the label is what follows them.
_BOX = re.compile(
    rf"(?P<edges>(?:{_LOCATION}){{4}})(?!{_LOCATION})"
    rf"(?P<codes>(?:{_CODE})*)"
    rf"(?P<label>(?:(?!<loc\d{{4}}>|<seg\d{{3}}>)[^;])*)",
    re.ASCII,
)
_EDGE, _MASK_CODE = re.compile(r"\d{4}"), re.compile(r"\d{3}")


class Box(NamedTuple):
    """Edges in the picture's pixels: x to the right, y downwards, from the upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __repr__(self) -> str:
        """To 1/100 of a pixel."""
        edges = (f"{name}={round(float(edge), 2):.12g}" for name, edge in self._asdict().items())
        return f"Box({', '.join(edges)})"


class ParsedBox(NamedTuple):
    """A box found in an answer.

    label: without outer blanks, "" where none was said. box: edges as shares of the picture in
    [0, 1]. start, end: where in the answer it stands. codes: the 16 codes of its mask, 0 … 127;
    None without a mask, or with one that does not have 16.
    """

    label: str
    box: Box
    start: int
    end: int
    codes: tuple[int, ...] | None = None


def encode_box(box: Box, width: float, height: float, *, outward: bool = False) -> str:
    """A box in a width × height picture → four location tokens; what lies outside is cut off.

    outward: round away from the box's middle, and give a box without area a step's.
    """
    shares = (box.y0 / height, box.x0 / width, box.y1 / height, box.x1 / width)
    steps = [min(max(share, 0), 1) * (BINS - 1) for share in shares]
    edges = [round(step) for step in steps]
    if outward:
        low = [min(math.floor(step), BINS - 2) for step in steps[:2]]
        high = [max(math.ceil(step), edge + 1) for step, edge in zip(steps[2:], low, strict=True)]
        edges = low + high
    return "".join(f"<loc{edge:04}>" for edge in edges)


def has_area(tokens: str) -> bool:
    """Whether four location tokens, as `encode_box` writes them, are a box with area."""
    y0, x0, y1, x1 = (tokens[i : i + 4] for i in range(4, 9 * 4, 9))
    return y0 < y1 and x0 < x1


def clip_box(box: Box, width: float, height: float) -> Box | None:
    """The part of a box inside a width × height picture; None where that has no area."""
    x0, x1 = (min(max(edge, 0), width) for edge in (box.x0, box.x1))
    y0, y1 = (min(max(edge, 0), height) for edge in (box.y0, box.y1))
    return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def parse_boxes(answer: str, *, thin: bool = False) -> list[ParsedBox]:
    """All well-formed boxes of an answer, in order; the rest is passed over. Never raises.

    A box without area is not well-formed, save where `thin` ones are asked for. A label may hold
    any character but `;`, which ends it, as the next location or segment token does.
    """
    found = []
    for match in _BOX.finditer(answer):
        y0, x0, y1, x1 = (int(n) / (BINS - 1) for n in _EDGE.findall(match["edges"]))
        if (x1 > x0 and y1 > y0) or (thin and x1 >= x0 and y1 >= y0):
            codes = tuple(int(n) for n in _MASK_CODE.findall(match["codes"]))
            end = match.start() + len(match[0].rstrip())
            found.append(
                ParsedBox(
                    match["label"].strip(),
                    Box(x0, y0, x1, y1),
                    match.start(),
                    end,
                    codes if len(codes) == MASK_TOKENS else None,
                )
            )
    return found
