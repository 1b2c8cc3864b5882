"""The things a scene can hold: names, plurals, look-alikes and the classes of a patch.

A concept is drawn by every vendor, so that "dog" means the same animal in all styles; the pairs
that are easy to mix up share a `group`, from which the hard negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "CHARACTERS",
    "COLOURS",
    "CONCEPTS",
    "PATCH_CLASSES",
    "PATCH_CLASS_IDS",
    "SHAPES",
    "Concept",
    "plural_of",
    "with_article",
]


@dataclass(frozen=True)
class Concept:
    """One drawable thing.

    name: what it is called; plural: more than one of it; group: look-alikes share one;
    icon: its name in the icon sets; fxemoji: its name in fxemoji, which has names of its own.
    """

    name: str
    plural: str
    group: str
    icon: str
    fxemoji: str


def _concept(name: str, group: str, icon: str, fxemoji: str, plural: str = "") -> Concept:
    return Concept(name, plural or name + "s", group, icon, fxemoji)


CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        _concept("dog", "animal", "dog-face", "dog"),
        _concept("cat", "animal", "cat-face", "cat"),
        _concept("pig", "animal", "pig-face", "pig"),
        _concept("panda", "animal", "panda", "pandaface"),
        _concept("frog", "animal", "frog", "frog"),
        _concept("elephant", "animal", "elephant", "elephant"),
        _concept("penguin", "animal", "penguin", "penguin"),
        _concept("fish", "animal", "tropical-fish", "tropicalfish", plural="fish"),
        _concept("octopus", "animal", "octopus", "octopus", plural="octopuses"),
        _concept("turtle", "animal", "turtle", "turtle"),
        _concept("bee", "animal", "honeybee", "honeybee"),
        _concept("ladybug", "animal", "lady-beetle", "ladybeetle"),
        _concept("apple", "food", "red-apple", "redapple"),
        _concept("banana", "food", "banana", "banana"),
        _concept("strawberry", "food", "strawberry", "strawberry", plural="strawberries"),
        _concept("watermelon", "food", "watermelon", "watermelon"),
        _concept("pineapple", "food", "pineapple", "pineapple"),
        _concept("lemon", "food", "lemon", "lemon"),
        _concept("pumpkin", "food", "jack-o-lantern", "jackolantern"),
        _concept("mushroom", "food", "mushroom", "mushroom"),
        _concept("pizza", "food", "pizza", "sliceofpizza"),
        _concept("burger", "food", "hamburger", "hamburger"),
        _concept("doughnut", "food", "doughnut", "doughnut"),
        _concept("cake", "food", "birthday-cake", "birthdaycake"),
        _concept("car", "vehicle", "automobile", "automobile"),
        _concept("bus", "vehicle", "bus", "bus", plural="buses"),
        _concept("bicycle", "vehicle", "bicycle", "bicycle"),
        _concept("airplane", "vehicle", "airplane", "airplane"),
        _concept("rocket", "vehicle", "rocket", "rocket"),
        _concept("helicopter", "vehicle", "helicopter", "helicopter"),
        _concept("tractor", "vehicle", "tractor", "tractor"),
        _concept("tree", "plant", "deciduous-tree", "deciduoustree"),
        _concept("cactus", "plant", "cactus", "cactus", plural="cactuses"),
        _concept("sunflower", "plant", "sunflower", "sunflower"),
        _concept("house", "object", "house", "housebuilding"),
        _concept("moon", "object", "crescent-moon", "crescentmoon"),
        _concept("umbrella", "object", "umbrella-with-rain-drops", "umbrellawithraindrops"),
        _concept("cup", "object", "hot-beverage", "hotbeverage"),
        _concept("key", "object", "key", "key"),
        _concept("guitar", "object", "guitar", "guitar"),
        _concept("football", "object", "soccer-ball", "soccerball"),
        _concept("balloon", "object", "balloon", "balloon"),
        _concept("gift", "object", "wrapped-gift", "present"),
        _concept("crown", "object", "crown", "crown"),
        _concept("hat", "object", "top-hat", "tophat"),
        _concept("book", "object", "closed-book", "closedbook"),
        _concept("camera", "object", "camera", "camera"),
        _concept("trophy", "object", "trophy", "trophy", plural="trophies"),
    )
}

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (250, 135, 20),
    "yellow": (250, 215, 30),
    "green": (45, 160, 65),
    "blue": (35, 95, 215),
    "purple": (130, 55, 170),
    "pink": (250, 130, 185),
    "brown": (120, 72, 38),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
}

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

PATCH_CLASSES: tuple[str, ...] = (
    "ground",
    *CONCEPTS,
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *(f"digit {digit}" for digit in range(10)),
    *(f"character {character}" for character in CHARACTERS),
)
"""What can cover a patch. A word is named by the character that lies there, so reading is taught
where the ink is; "digit 7" is handwritten, "character 7" is printed."""

PATCH_CLASS_IDS: dict[str, int] = {name: index for index, name in enumerate(PATCH_CLASSES)}

# class maps are kept in one byte a pixel
assert len(PATCH_CLASSES) <= np.iinfo(np.uint8).max + 1


def plural_of(name: str) -> str:
    """The plural of a concept, a shape or a coloured shape: "dogs", "red circles"."""
    concept = CONCEPTS.get(name)
    return concept.plural if concept else name + "s"


def with_article(name: str) -> str:
    """The name with its indefinite article: "a dog", "an apple", "an orange star"."""
    return ("an " if name[0] in "aeiou" else "a ") + name
