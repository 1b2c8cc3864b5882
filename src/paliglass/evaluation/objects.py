"""How right things are: named, found, cut out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from paliglass.modeling_mask_codec import MaskCodec
from paliglass.tasks.boxes import Box, ParsedBox, parse_boxes
from paliglass.tasks.masks import paste_mask

NUMBERS = {"two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class Matches:
    """Things found, things claimed, things there; sums of them give a micro-averaged F1."""

    found: int = 0
    claimed: int = 0
    there: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.found + other.found, self.claimed + other.claimed, self.there + other.there
        )

    @property
    def f1(self) -> float:
        """2·found / (claimed + there): 1 where nothing is there and nothing is claimed."""
        total = self.claimed + self.there
        return 2 * self.found / total if total else 1.0


def intersection_over_union(a: Box, b: Box) -> float:
    """Area that two boxes share, over the area that they cover together; in [0, 1]."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def pair_off(
    fits: Iterable[tuple[float, int, int]], threshold: float = 0.0
) -> dict[int, tuple[int, float]]:
    """Claims and true things, the best fit first and nothing twice: true thing → (claim, fit).

    fits: (fit, claim, true thing); those that are 0 or below `threshold` make no pair.
    """
    pairs: dict[int, tuple[int, float]] = {}
    used: set[int] = set()
    for fit, mine, real in sorted(fits, reverse=True):
        if fit > 0 and fit >= threshold and mine not in used and real not in pairs:
            used.add(mine)
            pairs[real] = mine, fit
    return pairs


def match_boxes(answer: str, truth: str, threshold: float = 0.5) -> Matches:
    """Boxes of `answer` that fit one of `truth`: the same label, IoU of at least `threshold`.

    Whatever stands between semicolons is a claim, a malformed box too.
    """
    mine, real = parse_boxes(answer), parse_boxes(truth)
    fits = (
        (intersection_over_union(a.box, b.box), i, j)
        for i, a in enumerate(mine)
        for j, b in enumerate(real)
        if a.label == b.label
    )
    claims = sum(1 for part in answer.split(";") if part.strip())
    return Matches(len(pair_off(fits, threshold)), max(claims, len(mine)), len(real))


Mask = NDArray[np.bool_]


def mask_overlaps(
    mine: Sequence[tuple[str, Mask]], real: Sequence[tuple[str, Mask]]
) -> list[float]:
    """For each true thing the IoU of the claimed mask that answers to it; 0 where none does.

    Both are (label, H × W) pairs; only masks with the same label answer to each other.
    """
    fits = (
        (mask_iou(a, b), i, j)
        for i, (label, a) in enumerate(mine)
        for j, (true_label, b) in enumerate(real)
        if label == true_label
    )
    pairs = pair_off(fits)
    return [pairs[j][1] if j in pairs else 0.0 for j in range(len(real))]


def mask_iou(a: Mask, b: Mask) -> float:
    """Pixels in both over pixels in either; in [0, 1]."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def objects_named(caption: str, singular: Mapping[str, str]) -> Counter[str]:
    """The things of a caption, counted: "two dogs and a cup" → dog 2, cup 1.

    `singular` maps plurals to names; a phrase that names nothing known counts as itself.
    """
    named: Counter[str] = Counter()
    for phrase in re.split(r", | and ", caption):
        count, _, name = phrase.partition(" ")
        if count in NUMBERS:
            named[singular.get(name, name)] += NUMBERS[count]
        elif phrase:
            named[name if count in ("a", "an") else phrase] += 1
    return named


def match_objects(answer: str, truth: str, singular: Mapping[str, str]) -> Matches:
    """Things that both captions name, as often as both do."""
    claimed, there = objects_named(answer, singular), objects_named(truth, singular)
    return Matches((claimed & there).total(), claimed.total(), there.total())


def masks_said(answer: str, codec: MaskCodec, height: int, width: int) -> list[tuple[str, Mask]]:
    """The well-formed masks of an answer to `segment`: (label, H × W)."""
    found = [parsed for parsed in parse_boxes(answer) if parsed.codes is not None]
    labels = [parsed.label for parsed in found]
    return list(zip(labels, masks_of(found, codec, height, width), strict=True))


def masks_of(objects: Sequence[ParsedBox], codec: MaskCodec, height: int, width: int) -> list[Mask]:
    """The mask of each in a picture, H × W; empty for an object without codes."""
    masks = []
    for thing in objects:
        if thing.codes is None:
            masks.append(np.zeros((height, width), np.bool_))
            continue
        decoded = codec.decode(torch.tensor([thing.codes]))[0].numpy()
        x0, y0, x1, y1 = thing.box
        box = x0 * width, y0 * height, x1 * width, y1 * height
        masks.append(paste_mask(decoded, box, height, width))
    return masks
