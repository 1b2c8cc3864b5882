"""How right an answer is: exact match, objects named, boxes found, characters read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from paliglass.tasks.boxes import Box, parse_boxes

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


def match_boxes(answer: str, truth: str, threshold: float = 0.5) -> Matches:
    """Boxes of `answer` that fit one of `truth`: the same label, IoU of at least `threshold`.

    Greedy: the pair that fits best is matched first, and nothing is matched twice. Whatever stands
    between semicolons is a claim, a malformed box too.
    """
    mine, real = parse_boxes(answer), parse_boxes(truth)
    fits = [
        (intersection_over_union(a.box, b.box), i, j)
        for i, a in enumerate(mine)
        for j, b in enumerate(real)
        if a.label == b.label
    ]
    matched: set[int] = set()
    taken: set[int] = set()
    for fit, i, j in sorted(fits, reverse=True):
        if fit >= threshold and i not in matched and j not in taken:
            matched.add(i)
            taken.add(j)
    claims = sum(1 for part in answer.split(";") if part.strip())
    return Matches(len(matched), max(claims, len(mine)), len(real))


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


def edit_distance(a: str, b: str) -> int:
    """The fewest characters to insert, delete or replace that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]
