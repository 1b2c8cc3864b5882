"""Names of classes → labels, in the one form that prompts and answers have them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from paliglass.data.example import Findings
from paliglass.errors import PaliglassError
from paliglass.tasks.prompts import SPECIAL_WORD, label_key, one_label

__all__ = ["to_labels"]

Key = TypeVar("Key", bound=Hashable)


def to_labels(names: Iterable[tuple[str, Key, object]], findings: Findings) -> dict[Key, str]:
    """Key → label, of (place, key, name); blanks are single, and capitals make no other label.

    A name without a letter, or with a semicolon, which would make it two, is wrong, and
    one that holds special words like <loc0001>, which would be read as such; so is a key that two
    names have.
    """
    labels: dict[Key, str] = {}
    spelled: dict[str, tuple[Key, str]] = {}
    for where, key, name in names:
        with findings.at(where):
            label = one_label(str(name))
            if not label or ";" in label:
                raise PaliglassError(
                    f"{where}: {name!r} is no label, which has a letter and no semicolon; rename "
                    "the class"
                )
            if match := SPECIAL_WORD.search(label):
                raise PaliglassError(f"{where}: {label!r} holds {match[0]}; rename the class")
            owner, first = spelled.setdefault(label_key(label), (key, label))
            if key in labels and labels[key] != first:
                raise PaliglassError(
                    f"{where}: id {key} is {labels[key]!r} already; give {label!r} one of its own"
                )
            if owner != key:
                findings.odd(where, f"{label!r} and {first!r}, another class, are one label")
            labels[key] = first
    return labels
