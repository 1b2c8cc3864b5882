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
from paliglass.tasks.prompts import same_label

__all__ = [
    "NUMBERS",
    "Matches",
    "intersection_over_union",
    "mask_iou",
    "mask_overlaps",
    "masks_in",
    "masks_of",
    "match_boxes",
    "match_objects",
    "objects_named",
    "pair_off",
    "share_inside",
]

NUMBERS = {"two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class Matches:
    """How many predictions match a target, how many there are, and how many targets.

    Sums of them give a micro-averaged F1.
    """

    matched: int = 0
    predictions: int = 0
    targets: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.matched + other.matched,
            self.predictions + other.predictions,
            self.targets + other.targets,
        )

    @property
    def f1(self) -> float:
        """2·matched / (predictions + targets): 1 where there are neither."""
        total = self.predictions + self.targets
        return 2 * self.matched / total if total else 1.0


def intersection_over_union(a: Box, b: Box) -> float:
    """Area that two boxes share, over the area that they cover together; in [0, 1]."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box.x1 - box.x0) * (box.y1 - box.y0) for box in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def share_inside(box: Box, region: Box) -> float:
    """The share of a box's area that lies in a region; in [0, 1]."""
    width = min(box.x1, region.x1) - max(box.x0, region.x0)
    height = min(box.y1, region.y1) - max(box.y0, region.y0)
    area = (box.x1 - box.x0) * (box.y1 - box.y0)
    return max(width, 0.0) * max(height, 0.0) / area if area > 0 else 0.0


def pair_off(
    fits: Iterable[tuple[float, int, int]], threshold: float = 0.0
) -> dict[int, tuple[int, float]]:
    """Predictions and targets, the best fit first and nothing twice: target → (prediction, fit).

    fits: (fit, prediction, target); those that are 0 or below `threshold` make no pair.
    """
    pairs: dict[int, tuple[int, float]] = {}
    used: set[int] = set()
    for fit, prediction, target in sorted(fits, reverse=True):
        if fit > 0 and fit >= threshold and prediction not in used and target not in pairs:
            used.add(prediction)
            pairs[target] = prediction, fit
    return pairs


def match_boxes(prediction: str, target: str, ignored: str = "", threshold: float = 0.5) -> Matches:
    """Boxes that fit one of the target's: the same label, IoU of at least `threshold`.

    Whatever stands between semicolons is a prediction, a malformed box too. ignored: regions, as
    boxes with labels; what fits no target and lies in one, by a share of at least `threshold`,
    counts neither way: COCO's rule for crowds.
    """
    predicted, targets, regions = map(parse_boxes, (prediction, target, ignored))
    fits = (
        (intersection_over_union(a.box, b.box), i, j)
        for i, a in enumerate(predicted)
        for j, b in enumerate(targets)
        if same_label(a.label, b.label)
    )
    pairs = pair_off(fits, threshold)
    matched = {i for i, _ in pairs.values()}
    excused = sum(
        any(
            same_label(a.label, region.label) and share_inside(a.box, region.box) >= threshold
            for region in regions
        )
        for i, a in enumerate(predicted)
        if i not in matched
    )
    parts = sum(1 for part in prediction.split(";") if part.strip())
    return Matches(len(pairs), max(parts, len(predicted)) - excused, len(targets))


Mask = NDArray[np.bool_]


def mask_overlaps(
    predicted: Sequence[tuple[str, Mask]], targets: Sequence[tuple[str, Mask]]
) -> list[float]:
    """For each target the IoU of the predicted mask that answers to it; 0 where none does.

    Both are (label, H × W) pairs; only masks with the same label answer to each other.
    """
    fits = (
        (mask_iou(a, b), i, j)
        for i, (label, a) in enumerate(predicted)
        for j, (target, b) in enumerate(targets)
        if same_label(label, target)
    )
    pairs = pair_off(fits)
    return [pairs[j][1] if j in pairs else 0.0 for j in range(len(targets))]


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


def match_objects(prediction: str, target: str, singular: Mapping[str, str]) -> Matches:
    """Things that both captions name, as often as both do."""
    predicted, true = objects_named(prediction, singular), objects_named(target, singular)
    return Matches((predicted & true).total(), predicted.total(), true.total())


def masks_in(answer: str, codec: MaskCodec, height: int, width: int) -> list[tuple[str, Mask]]:
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
        device = next(codec.parameters()).device
        with torch.inference_mode():
            decoded = codec.decode(torch.tensor([thing.codes], device=device))[0]
        x0, y0, x1, y1 = thing.box
        box = x0 * width, y0 * height, x1 * width, y1 * height
        masks.append(paste_mask(decoded.float().cpu().numpy(), box, height, width))
    return masks
