"""What a small model can know at all: the things of its world, in things.json beside its weights.

A model that learned from pictures of everything has no such list. One that did not answers about a
wombat as if it were something that it knows, so a user is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from paliglass.errors import CheckpointError
from paliglass.files import read_json

__all__ = ["FILE", "Things", "load_things"]

FILE = "things.json"
_ARTICLES = ("a ", "an ", "the ")


@dataclass(frozen=True)
class Things:
    """words: each thing's name with the other words for it, plurals among them."""

    words: Mapping[str, Sequence[str]]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Every word with the name of what it means."""
        others = {word: name for name, words in self.words.items() for word in words}
        return others | {name: name for name in self.words}

    def knows(self, label: str) -> bool:
        """Whether the label, or what it ends with ("red star"), is a word for something."""
        words = _plain(label).split()
        return any(" ".join(words[i:]) in self._names for i in range(len(words)))

    def near(self, label: str, count: int = 3) -> list[str]:
        """Names that are spelled like the label, or have another word that is."""
        found = get_close_matches(_plain(label), self._names, count, cutoff=0.75)
        return list(dict.fromkeys(self._names[word] for word in found))

    def complaint(self, labels: Sequence[str], model: str) -> str | None:
        """What to tell where a model knows none of the labels."""
        if not labels or any(map(self.knows, labels)):
            return None
        near = list(dict.fromkeys(name for label in labels for name in self.near(label)))
        known = f"near: {', '.join(near)}; " if near else ""
        listed = ", ".join(f'"{label}"' for label in labels)
        return (
            f"{model} does not know {listed} ({known}its {len(self.words)} things: "
            f"paliglass info {model} --things)"
        )


def load_things(folder: Path) -> Things | None:
    """The things.json of a model's folder, if it has one.

    Raises CheckpointError naming the file.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    found: Any = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(words, list) and all(isinstance(word, str) for word in words)
        for words in found.values()
    ):
        raise CheckpointError(f"{path}: is no object of names with lists of other words; remove it")
    return Things(found)


def _plain(label: str) -> str:
    """As the list has it: small letters, single blanks, no article."""
    text = " ".join(label.lower().split())
    return next((text[len(a) :] for a in _ARTICLES if text.startswith(a)), text)
