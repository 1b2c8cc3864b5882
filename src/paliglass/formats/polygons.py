"""Masks as polygons: outlines along the edges of pixels, and polygons filled as COCO's tools do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_STEPS", "STEPS", "Edge", "Point", "fill_polygons", "outlines"]

MAX_STEPS = 50_000_000  # of a polygon's outline; more is no outline of a thing in a picture
_FINE = 5  # steps a pixel that COCO's tools follow an outline in


def fill_polygons(
    polygons: Sequence[Sequence[float]], height: int, width: int
) -> NDArray[np.bool_]:
    """[x, y, x, y, …] of each part → H × W, pixel by pixel what pycocotools makes of it.

    A pixel belongs to a polygon where an odd number of its edges cross the pixel's column above the
    pixel's centre; edges are followed on a grid five times as fine. Parts may overlap.

    Raises ValueError for an odd number of coordinates, fewer than three corners, numbers that are
    not finite, or an outline far larger than any picture.
    """
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon of {len(polygon)} numbers; it is x, y of 3 or more corners"
            )
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        if not np.isfinite(corners).all():
            raise ValueError("a polygon with a corner that is not finite")
        columns, rows = _crossings(corners, height, width)
        if not len(columns):
            continue
        first, last = int(columns.min()), int(columns.max()) + 1
        # Down the columns from crossing to crossing, inside and outside take turns.
        ends = np.sort((columns - first) * height + rows)
        runs = np.diff(ends, prepend=0, append=(last - first) * height)
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        mask[:, first:last] |= inside.reshape((height, last - first), order="F")
    return mask


def _crossings(
    corners: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where an outline crosses the centres of columns: column, and the first row below it.

    An outline is a path of points on the fine grid, one a step along each edge's longer axis.
    """
    fine = np.trunc(corners * _FINE + 0.5)
    start, end = fine, np.roll(fine, -1, axis=0)
    span = np.abs(end - start)
    steps = span.max(axis=1)
    if steps.sum() > MAX_STEPS:
        raise ValueError("a polygon far larger than its picture")
    is_flat = span[:, 0] >= span[:, 1]
    # Edges are followed in the direction in which their longer axis rises, whichever end is first.
    longer = np.where(is_flat, end[:, 0] - start[:, 0], end[:, 1] - start[:, 1])
    is_back = longer < 0
    low = np.where(is_back[:, None], end, start)
    high = np.where(is_back[:, None], start, end)
    slope = np.where(is_flat, high[:, 1] - low[:, 1], high[:, 0] - low[:, 0]) / np.maximum(steps, 1)
    counts = steps.astype(np.int64) + 1
    edge = np.repeat(np.arange(len(counts)), counts)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = np.where(is_back[edge], counts[edge] - 1 - along, along)
    first = np.where(is_flat, low[:, 0], low[:, 1])[edge] + along
    second = np.trunc(np.where(is_flat, low[:, 1], low[:, 0])[edge] + slope[edge] * along + 0.5)
    x = np.where(is_flat[edge], first, second).astype(np.int64)
    y = np.where(is_flat[edge], second, first)
    # The centre of column c lies between the fine grid's 5c + 2 and 5c + 3.
    left = np.minimum(x[1:], x[:-1])
    column, rest = np.divmod(left, _FINE)
    crossed = (x[1:] != x[:-1]) & (rest == _FINE // 2) & (column >= 0) & (column < width)
    upper = np.minimum(y[1:], y[:-1])[crossed]
    row = np.ceil(((upper + 0.5) / _FINE - 0.5).clip(0, height))
    return column[crossed], row.astype(np.int64)


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
