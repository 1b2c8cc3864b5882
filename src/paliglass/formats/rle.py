"""Masks in the formats of others: COCO's run lengths, and outlines along the edges of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    """What `encode_rle` wrote → H × W. Raises ValueError where runs and size do not match."""
    height, width = rle["size"]
    runs: list[int] = []
    number = shift = 0
    for character in rle["counts"].encode("ascii"):
        group = character - 48
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"the runs of a mask do not add up to {height} × {width} pixels")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


Point = tuple[int, int]
Edge = tuple[int, int, int]
"""A step of one pixel: the corner it starts from, x and y, and an index into STEPS."""

STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
RIGHT, DOWN, LEFT, UP = range(4)


def outlines(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """H × W → a polygon for each part, its corners (x, y) on the edges between pixels, clockwise.

    Pixels that touch at a corner only are parts of their own. A hole is joined to the outline
    around it by a seam that is walked in both directions, so that the polygons alone, filled, are
    the mask again.
    """
    following = _rings(mask)
    unseen = dict.fromkeys(following)
    outer: list[Edge] = []
    holes: list[Edge] = []
    while unseen:
        ring = _walk(following, next(iter(unseen)))
        for edge in ring:
            del unseen[edge]
        area = sum(x * STEPS[way][1] for x, _, way in ring)  # Green's theorem
        if area > 0:
            outer.append(ring[0])
        else:
            holes.append(min(edge for edge in ring if edge[2] == DOWN))
    for number, hole in enumerate(holes):
        _stitch(mask, following, hole, number)
    return [_corners([edge[:2] for edge in _walk(following, start)]) for start in outer]


def _rings(mask: NDArray[np.bool_]) -> dict[Edge, Edge]:
    """The border of a mask in unit steps with the mask on their right, each with the one after."""
    around = np.pad(mask, 1)
    outside = {  # the neighbour that a pixel's edge borders on, and the corner the edge starts from
        RIGHT: (around[:-2, 1:-1], 0, 0),
        DOWN: (around[1:-1, 2:], 1, 0),
        LEFT: (around[2:, 1:-1], 1, 1),
        UP: (around[1:-1, :-2], 0, 1),
    }
    edges: dict[Edge, None] = {}
    for way, (neighbour, right, below) in outside.items():
        rows, columns = np.nonzero(mask & ~neighbour)
        pairs = zip((columns + right).tolist(), (rows + below).tolist(), strict=True)
        edges.update(dict.fromkeys((x, y, way) for x, y in pairs))
    following = {}
    for x, y, way in edges:
        end = x + STEPS[way][0], y + STEPS[way][1]
        # To the right first: where four pixels meet, that stays at the same pixel.
        turns = ((*end, (way + turn) % 4) for turn in (1, 0, 3))
        following[x, y, way] = next(edge for edge in turns if edge in edges)
    return following


def _walk(following: Mapping[Edge, Edge], start: Edge) -> list[Edge]:
    ring = [start]
    while (edge := following[ring[-1]]) != start:
        ring.append(edge)
    return ring


def _stitch(mask: NDArray[np.bool_], following: dict[Edge, Edge], hole: Edge, number: int) -> None:
    """Joins a hole's ring to the one met first on the way to the left.

    hole: its leftmost step, down along the mask's pixel to the left. What is met lies further to
    the left as a whole, so joining all holes makes no circle of holes.
    """
    x, y, _ = hole
    gaps = np.flatnonzero(~mask[y, :x])
    met = (int(gaps[-1]) + 1 if len(gaps) else 0, y + 1, UP)
    first = following[hole]
    # The two ends of the seam are passed twice; their second time is a step of its own.
    back, again = (*first[:2], 4 + number), (*met[:2], -1 - number)
    following[again] = following[met]
    following[met] = first
    following[hole] = back
    following[back] = again


def _corners(points: list[Point]) -> list[Point]:
    """Without the points that lie on a straight line between their neighbours."""
    around = np.array([points[-1], *points, points[0]])
    ways = np.sign(np.diff(around, axis=0))
    turns = (ways[1:] != ways[:-1]).any(axis=1)
    return [point for point, turn in zip(points, turns.tolist(), strict=True) if turn]
