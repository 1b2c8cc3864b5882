"""The things a scene can hold: names, plurals, look-alikes and the classes of a patch.

A concept is drawn by (nearly) every vendor, so that "dog" is the same animal in all styles; those
that are easy to mix up share a `group`, from which the hard negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

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
    icon: its name in the icon sets; fxemoji: its name in fxemoji, which has names of its own, or
    "" where it does not draw it, or draws something else.
    """

    name: str
    plural: str
    group: str
    icon: str
    fxemoji: str


def _read() -> dict[str, Concept]:
    table = (files("workshop.world") / "concepts.tsv").read_text(encoding="utf-8")
    concepts = [Concept(*line.split("\t")) for line in table.splitlines()[1:]]
    return {concept.name: concept for concept in concepts}


CONCEPTS: dict[str, Concept] = _read()
"""256 everyday things by name, of `concepts.tsv`."""

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


def plural_of(name: str) -> str:
    """The plural of a concept, a shape or a coloured shape: "dogs", "red circles"."""
    concept = CONCEPTS.get(name)
    return concept.plural if concept else name + "s"


def with_article(name: str) -> str:
    """The name with its indefinite article: "a dog", "an apple", "an orange star"."""
    vowel = (name[0] in "aeiou" and not name.startswith("uni")) or name.startswith("hour")
    return ("an " if vowel else "a ") + name
