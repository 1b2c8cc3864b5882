"""The things a scene can hold: names, synonyms, what kinds of thing they are, look-alikes.

A concept may be drawn in several ways (a dog's face, a whole dog), each by nearly every vendor, and
is called what a person would call it. Those that are easy to mix up share a `group`, from which the
hard negatives are drawn.

A *term* is any word for things: a name ("dog"), a synonym ("puppy"), a kind ("animal"), a shape
with or without its colour. `means` says of a term and a thing yes, no, or None where people would
differ; nothing is asked about a scene where they would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

__all__ = [
    "CHARACTERS",
    "COLOURS",
    "CONCEPTS",
    "KINDS",
    "MASS",
    "PATCH_CLASSES",
    "PATCH_CLASS_IDS",
    "SHADES",
    "SHAPES",
    "TERMS",
    "Concept",
    "known_things",
    "means",
    "plural_of",
    "with_article",
]


@dataclass(frozen=True)
class Concept:
    """One drawable thing.

    name, plural: what one and several are called; group: look-alikes share one; kinds: what it is,
    "animal" say; icons: its names in the icon sets; synonyms: other words for it; doubtful: words
    that some would use for it, which are therefore neither right nor wrong.
    """

    name: str
    plural: str
    group: str
    kinds: tuple[str, ...]
    icons: tuple[str, ...]
    synonyms: tuple[str, ...]
    doubtful: frozenset[str]


def _regular(name: str) -> str:
    """The plural of a noun by the rules alone."""
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read() -> dict[str, Concept]:
    concepts: dict[str, Concept] = {}
    group, unsure = "", frozenset[str]()
    kinds: tuple[str, ...] = ()
    for line in (files("workshop.world") / "concepts.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("@"):
            group, _, rest = (part.strip() for part in line[1:].partition("<"))
            kinds = tuple(kind for kind in _listed(rest) if kind[0] != "~")
            unsure = frozenset(kind[1:] for kind in _listed(rest) if kind[0] == "~")
            continue
        name, plural, icons, words = line.split("|")
        others = _listed(words)
        concepts[name] = Concept(
            name,
            plural or _regular(name),
            group,
            kinds,
            tuple(i for i in _listed(icons) or [name.replace(" ", "-")] if i != "-"),
            tuple(word for word in others if word[0] != "~"),
            unsure | {word[1:] for word in others if word[0] == "~"},
        )
    return concepts


CONCEPTS: dict[str, Concept] = _read()
"""Everyday things by name, of `concepts.txt`."""

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "rectangle",
    "diamond",
    "oval",
    "cross",
    "arrow",
    "pentagon",
    "hexagon",
)

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
    "grey": (132, 132, 134),
}

# What else goes by these names: CSS's colours, and some that lie about them.
SHADES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (178, 34, 34), (235, 60, 50)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 120, 40)),
    "yellow": ((255, 255, 0), (255, 215, 0), (245, 235, 90)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (120, 200, 80)),
    "blue": ((0, 0, 255), (30, 144, 255), (0, 0, 139), (65, 105, 225)),
    "purple": ((128, 0, 128), (148, 0, 211), (153, 50, 204), (100, 50, 150)),
    "pink": ((255, 192, 203), (255, 105, 180), (250, 160, 200)),
    "brown": ((139, 69, 19), (160, 82, 45), (101, 60, 30)),
    "black": ((0, 0, 0), (40, 40, 44)),
    "white": ((255, 255, 255), (242, 242, 240)),
    "grey": ((128, 128, 128), (169, 169, 169), (105, 105, 105)),
}

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,!?:-'&%$€£/+#@()"

KINDS: tuple[str, ...] = tuple(
    dict.fromkeys(kind for concept in CONCEPTS.values() for kind in concept.kinds)
)
"""What several concepts are: "animal", "bird", "vehicle" …"""

MASS = frozenset({"food"})
"""Kinds that are not counted."""

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


def _terms() -> dict[str, str]:
    """Every term with its plural."""
    terms = {concept.name: concept.plural for concept in CONCEPTS.values()}
    for concept in CONCEPTS.values():
        for word in concept.synonyms:
            same = word == concept.plural or " of " in word or word.endswith("s")
            terms.setdefault(word, word if same else _regular(word))
    for kind in KINDS:
        irregular = {"food": "food", "piece of clothing": "pieces of clothing"}
        terms.setdefault(kind, irregular.get(kind, _regular(kind)))
    for shape in SHAPES:
        terms.setdefault(shape, _regular(shape))
        for colour in COLOURS:
            terms[f"{colour} {shape}"] = f"{colour} {_regular(shape)}"
    terms["shape"] = "shapes"
    return terms


TERMS: dict[str, str] = _terms()
"""Every word for things, with its plural."""


@lru_cache(maxsize=1 << 16)
def means(term: str, name: str) -> bool | None:
    """Whether a term can be said of a thing of this name; None where people would differ.

    >>> means("plane", "airplane"), means("vehicle", "airplane"), means("car", "taxi")
    (True, True, None)
    """
    if term == name:
        return True
    concept = CONCEPTS.get(name)
    if concept is None:  # a coloured shape: "red star" is a star, a shape, and no blue star
        colour, _, shape = name.partition(" ")
        if term in (shape, "shape"):
            return True
        return None if colour == "grey" and term == f"gray {shape}" else False
    if term in concept.synonyms or term in concept.kinds:
        return True
    if term in concept.doubtful:
        return None
    if term == "shape":  # a star, a heart, a spade
        return None if name in ("glowing star", "moon", "spade") else False
    word = term.partition(" ")[2]
    return None if word in SHAPES and word in (name, *concept.synonyms) else False


def known_things() -> dict[str, list[str]]:
    """All that the world can show, with other words for it: what a model of it can know.

    A kind ("animal") and a shape are things too; plurals are among the words.
    """
    things = {name: concept.synonyms for name, concept in CONCEPTS.items()}
    things |= {name: () for name in ("shape", *SHAPES, *KINDS) if name not in things}
    return {
        name: list(dict.fromkeys((*words, *map(plural_of, (name, *words)))))
        for name, words in things.items()
    }


def plural_of(term: str) -> str:
    """The plural of a term: "dogs", "red circles", "planes"."""
    return TERMS.get(term) or _regular(term)


_UNCOUNTED = frozenset(
    "popcorn bacon butter salt broccoli garlic ginger wheat wood sushi oden dna curry "
    "spaghetti tempura rice pasta milk honey bread corn lettuce food cereal".split()
)


def with_article(name: str) -> str:
    """The name with its indefinite article where it takes one: "a dog", "an apple", "jeans"."""
    if name in _UNCOUNTED or (name == plural_of(name) and name.endswith("s")):
        return name
    first, letters = name.split()[0], "fhlmnrsx"
    if len(first) == 1 or first[1:2] == "-":  # "an x-ray", "a t-shirt"
        vowel = first[0] in "aeio" + letters
    else:
        silent = first.startswith(("hour", "heir", "honest"))
        vowel = first[0] in "aeiou" and not first.startswith(("uni", "one", "euro", "ufo"))
        vowel = vowel or silent
    return ("an " if vowel else "a ") + name
