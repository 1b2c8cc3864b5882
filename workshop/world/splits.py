"""The splits, and the rules that keep what is tested apart from what is trained on.

Every rule is a hash of the thing itself or a list in this file, so no scene has to be looked up:
a manifest beside the tests has what follows from them, and a test holds it to the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal
from zlib import crc32

from workshop.world.concepts import CONCEPTS
from workshop.world.wordings import Words

__all__ = [
    "RESERVED_SHAPES",
    "SPLITS",
    "Rules",
    "Split",
    "is_reserved",
    "is_reserved_pair",
    "reserved_partners",
]

Split = Literal[
    "train",
    "test",
    "style",
    "validation",
    "composition",
    "reading",
    "digits",
    "photos",
    "wordings",
    "lines",
    "plain",
    "documents",
    "unknown",
    "phrasings",
]


@dataclass(frozen=True)
class Rules:
    """What the scenes of a split are made of.

    number: tells its scenes' seeds from those of the other splits;
    stickers: of the training vendors, of the held-out ones, or photographs;
    held_out: words, fonts, handwritten digits and the words on documents are those that training
        never sees;
    reserved: every scene holds a combination of things that training never shows, and only here;
    first: what every scene holds, besides what else it may;
    mixed: empty pictures, documents, several lines and long numbers are among its scenes;
    restyled: stickers in other styles, with shadows;
    drawn: plain drawings and uncommon shapes too;
    asked: in wordings of training's, in those held out from it, or in those by another hand;
    unknown: half of its pictures are empty, and half of what is asked cannot be answered.
    """

    number: int
    stickers: Literal["train", "style", "photos"] = "train"
    held_out: bool = True
    reserved: bool = False
    first: Literal["word", "digit", "lines", "drawing", "document"] | None = None
    mixed: bool = False
    restyled: bool = False
    drawn: bool = False
    asked: Literal["plain", "held out", "by another"] = "plain"
    unknown: bool = False

    @property
    def words(self) -> Words:
        """In whose wordings it asks: training's are many more."""
        return self.asked if self.held_out else "training"

    @property
    def new_wordings(self) -> bool:
        """Whether it asks in wordings that training never has."""
        return self.asked != "plain"


SPLITS: dict[Split, Rules] = {
    "train": Rules(0, held_out=False, mixed=True, restyled=True, drawn=True),
    "test": Rules(1, mixed=True, drawn=True),
    "style": Rules(2, stickers="style"),
    "validation": Rules(3, held_out=False, mixed=True, restyled=True, drawn=True),
    "composition": Rules(4, reserved=True),
    "reading": Rules(5, first="word"),
    "digits": Rules(6, first="digit"),
    "photos": Rules(7, stickers="photos"),
    "wordings": Rules(8, mixed=True, drawn=True, asked="held out"),
    "lines": Rules(9, first="lines"),
    "plain": Rules(10, first="drawing", drawn=True),
    "documents": Rules(11, first="document"),
    "unknown": Rules(12, mixed=True, drawn=True, unknown=True),
    "phrasings": Rules(13, mixed=True, drawn=True, asked="by another"),
}

RESERVED_SHAPES: tuple[str, ...] = tuple(
    f"{colour} {shape}" for colour in ("orange", "purple", "pink") for shape in ("square", "star")
)
"""Coloured shapes that only "composition" shows; each colour and each shape is seen elsewhere."""


def is_reserved_pair(one: str, other: str) -> bool:
    """Whether two different concepts never share a scene but in "composition": one pair in ten."""
    if one == other or one not in CONCEPTS or other not in CONCEPTS:
        return False
    return crc32("+".join(sorted((one, other))).encode()) % 10 == 0


def is_reserved(names: Sequence[str]) -> bool:
    """Whether things of these names together are in no scene but those of "composition"."""
    return any(name in RESERVED_SHAPES for name in names) or any(
        is_reserved_pair(*pair) for pair in combinations(names, 2)
    )


@cache
def reserved_partners(name: str) -> tuple[str, ...]:
    """The concepts with which a concept makes a reserved pair."""
    return tuple(other for other in CONCEPTS if is_reserved_pair(name, other))
