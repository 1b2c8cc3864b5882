"""How a thing can be asked: many wordings of each question, a tenth of them never in training.

`wordings.txt` has the paraphrases. Which are held out is settled by their hash; on top of it comes
what any wording can have: a capital, a missing mark, another spelling, another word for "picture".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal
from zlib import crc32

import numpy as np

__all__ = ["BY_ANOTHER", "KINDS", "MORE", "Words", "bare", "is_held_out", "say", "wordings"]

_PICTURES = ("picture", "picture", "image", "image", "photo", "drawing", "scene")


@lru_cache(maxsize=1)
def _read() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    kind = ""
    for line in (files("workshop.world") / "wordings.txt").read_text("utf-8").splitlines():
        if line.startswith("@"):
            kind = line[1:].strip()
            found[kind] = []
        elif line and not line.startswith("#"):
            found[kind].append(line)
    return {kind: tuple(dict.fromkeys(lines)) for kind, lines in found.items()}


MORE = " more"
"""Ends the kinds that training alone is asked in: of these nothing is held out."""
BY_ANOTHER = " by another"
"""Ends the kinds with wordings by somebody who had seen none of the others: never in training."""
KINDS: tuple[str, ...] = tuple(kind for kind in _read() if not kind.endswith((MORE, BY_ANOTHER)))
"""The kinds of question that there are wordings for, to train on and to test."""


@lru_cache(maxsize=1)
def _held_out() -> frozenset[tuple[str, str]]:
    held = set()
    for kind in KINDS:
        lines = _read()[kind]
        ranked = sorted(lines, key=lambda line: crc32(line.encode()))
        held |= {(kind, line) for line in ranked[: max(1, round(len(lines) / 10))]}
    # A line may be in several kinds; what one of them holds out, none may train on.
    texts = {line for _, line in held}
    return frozenset((k, line) for k, lines in _read().items() for line in lines if line in texts)


def is_held_out(kind: str, wording: str) -> bool:
    """Whether a wording is for testing alone: the tenth of its kind with the lowest hashes."""
    return (kind, wording) in _held_out()


@lru_cache(maxsize=256)
def wordings(kind: str, held_out: bool) -> tuple[str, ...]:
    """A kind's wordings, of training or of testing."""
    return tuple(line for line in _read()[kind] if is_held_out(kind, line) == held_out)


def bare(text: str) -> str:
    """A wording without capitals and marks, in British spelling, to be compared with another."""
    text = text.lower().replace("color", "colour").replace("gray", "grey")
    return " ".join(re.sub(r"[^\w{}' ]", " ", text).split())


@lru_cache(maxsize=1)
def _held_out_texts() -> frozenset[str]:
    others = {line for kind in _read() if kind.endswith(BY_ANOTHER) for line in _read()[kind]}
    return frozenset(bare(line) for line in others | {line for _, line in _held_out()})


Words = Literal["plain", "training", "held out", "by another"]


def say(kind: str, rng: np.random.Generator, words: Words = "plain", **slots: str) -> str:
    """A question of a kind in a random wording, as one person or another would type it.

    words: those of the kind; or half of the time one of the many that training alone has; or those
        that training never has, of the kind or by another hand.
    """
    if words == "training" and kind + MORE in _read() and rng.random() < 0.5:
        kind += MORE
    if words == "by another" and kind + BY_ANOTHER in _read():
        lines = wordings(kind + BY_ANOTHER, False)
    else:
        lines = wordings(kind, words in ("held out", "by another"))
    picture = _PICTURES[rng.integers(len(_PICTURES))]
    line = lines[rng.integers(len(lines))]
    while "[" in line:
        some = _CHOICE.sub(lambda found: _one(found[1].split("|"), rng), line)
        if bare(some) not in _held_out_texts():
            line = " ".join(some.split()).replace(" ?", "?")  # where nothing was chosen
    return typed(line.format(pic=picture, **slots), rng)


_CHOICE = re.compile(r"\[([^]]*)\]")


def _one(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def typed(text: str, rng: np.random.Generator) -> str:
    """A text as it may be typed: American, without its mark, with a capital, all in capitals."""
    draw = rng.random(4)
    if draw[0] < 0.5:
        text = text.replace("colour", "color").replace("grey", "gray")
    if draw[1] < 0.25:
        text = text.removesuffix("?")
    elif draw[1] > 0.96:
        text = text.removesuffix("?") + " ?"
    if draw[2] < 0.25:
        text = text[:1].upper() + text[1:]
    elif draw[2] > 0.97:
        text = text.upper()
    return text
