"""What a split is made of, and that nothing reserved is ever in training."""

from __future__ import annotations

import itertools
import json
import math
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from workshop.world import World, documents
from workshop.world.art import Art
from workshop.world.concepts import CONCEPTS
from workshop.world.photos import photo_names
from workshop.world.sources import SOURCES
from workshop.world.splits import (
    RESERVED_SHAPES,
    SPLITS,
    is_reserved,
    is_reserved_pair,
    reserved_partners,
)
from workshop.world.tasks import unknown_words
from workshop.world.wordings import BY_ANOTHER, KINDS, MORE, bare, say, wordings
from workshop.world.words import WORDS, is_held_out, is_word

MANIFEST = Path(__file__).with_name("manifest.json")
SLOT = re.compile(r"{(\w+)}")
PICTURE = "picture|image|photo|drawing"


def names_of(world: World, index: int) -> list[str]:
    kinds = ("sticker", "drawing", "shape")
    return [thing.name for thing in world.scene(index).objects if thing.kind in kinds]


def others() -> dict[str, list[str]]:
    """Wordings by somebody who had seen none of the rest; others are asked in held-out ones."""
    without = ("two ", "which kinds", "printed number")
    kinds = [kind for kind in KINDS if not kind.startswith(without)]
    return {kind: list(wordings(kind + BY_ANOTHER, False)) for kind in kinds}


def manifest() -> dict[str, object]:
    """What follows from the rules, in names and numbers."""
    pairs = ["+".join(sorted(p)) for p in combinations(CONCEPTS, 2) if is_reserved_pair(*p)]
    return {
        "concepts": len(CONCEPTS),
        "drawings": sum(len(concept.icons) for concept in CONCEPTS.values()),
        "splits": {name: rules.number for name, rules in SPLITS.items()},
        "reserved shapes": list(RESERVED_SHAPES),
        "reserved pairs": len(pairs),
        "first reserved pairs": sorted(pairs)[:40],
        "held-out words": sorted(word for word in WORDS if is_held_out(word)),
        "held-out wordings": {kind: list(wordings(kind, True)) for kind in KINDS},
        "wordings by another": others(),
        "held-out words of documents": {
            kind: [word for word in words if is_held_out(word)]
            for kind, words in (
                ("shops", documents.SHOPS),
                ("cities", documents.CITIES),
                ("families", documents.FAMILIES),
                ("titles", documents.TITLES),
            )
        },
        "held-out unknown things": list(unknown_words(True)),
        "held-out fonts": [s.family for s in SOURCES if s.what == "font" and s.role == "test"],
        "held-out styles": [s.family for s in SOURCES if s.role == "style"],
        "photographs": {name: len(stamps) for name, stamps in sorted(photo_names().items())},
    }


def test_the_splits_are_those_of_the_manifest() -> None:
    """Moving a thing from one side to the other would void every published score."""
    assert manifest() == json.loads(MANIFEST.read_text("utf-8"))


def test_pairs_are_reserved_either_way_round_and_for_every_concept() -> None:
    share = sum(is_reserved_pair(*pair) for pair in combinations(CONCEPTS, 2)) / math.comb(
        len(CONCEPTS), 2
    )
    assert 0.08 < share < 0.12
    for name in CONCEPTS:
        assert not is_reserved_pair(name, name)
        for other in reserved_partners(name):
            assert is_reserved_pair(other, name)
    assert not is_reserved_pair("dog", "red circle")


@pytest.mark.parametrize("split", ["train", "validation", "test", "style"])
def test_no_other_split_shows_what_is_reserved(art: Art, split: str) -> None:
    world = World(art=art, split=split)  # type: ignore[arg-type]
    for index in range(300):
        assert not is_reserved(names_of(world, index))


def test_every_composition_is_reserved(art: Art) -> None:
    world = World(art=art, split="composition")
    found = [names_of(world, index) for index in range(200)]
    assert all(map(is_reserved, found))
    shapes = sum(any(name in RESERVED_SHAPES for name in names) for names in found)
    assert 60 < shapes < 140


def test_a_tenth_of_all_wordings_is_never_trained_on(art: Art) -> None:
    for kind in KINDS:
        kept, held_out = set(wordings(kind, False)), set(wordings(kind, True))
        assert held_out
        assert not kept & held_out
        assert len(held_out) <= max(1, 0.3 * len(kept))
    trained = {line for kind in KINDS for line in wordings(kind, False)}
    tested = {line for kind in KINDS for line in wordings(kind, True)}
    assert not trained & tested
    assert 0.09 < len(tested) / len(trained | tested) < 0.14
    own = {
        new: {bare(line.format(pic="pic")) for line in wordings("total", new)}
        for new in (False, True)
    }
    lines = wordings("total" + MORE, False)
    more = {bare(text.format(pic="pic")) for line in lines for text in spelled(line)} - own[True]
    for split, new in (("train", False), ("wordings", True)):
        world = World(art=art, split=split)  # type: ignore[arg-type]
        prompts = [e.prefix for i in range(60) for e in world.sample(i)[1] if e.kind == "total"]
        asked = {bare(prompt.removeprefix("answer en ")) for prompt in prompts}
        asked = {re.sub(f"{PICTURE}|scene", "pic", text) for text in asked}
        assert asked & own[new]
        assert bool(asked & more) == (not new)
        assert asked <= own[new] | (set() if new else more)


def test_documents_of_testing_name_what_training_never_names(art: Art) -> None:
    for split, held_out in (("documents", True), ("train", False)):
        world = World(art=art, split=split)  # type: ignore[arg-type]
        pages = [page for i in range(200) if (page := world.scene(i).document)]
        shops = [page.facts["shop"].title() for page in pages if page.kind == "receipt"]
        assert len({page.kind for page in pages}) == 6
        assert shops
        known = {shop.title(): is_held_out(shop) for shop in documents.SHOPS}
        invented = [shop for shop in shops if shop not in known]
        assert all(known[shop] == held_out for shop in shops if shop in known)
        assert bool(invented) != held_out


def test_reading_and_digits_have_one_text_in_every_scene(art: Art) -> None:
    for split, kind in (("reading", "word"), ("digits", "digit")):
        world = World(art=art, split=split)  # type: ignore[arg-type]
        texts = []
        for index in range(100):
            texts += [t.label for t in world.scene(index).objects if t.kind == kind]
        assert len(texts) == 100
        if kind == "word":
            assert all(map(is_held_out, texts))
            assert 25 < sum(map(is_word, texts)) < 80


def test_no_reserved_shape_is_asked_for_where_there_is_none(art: Art) -> None:
    world = World(art=art)
    for index in range(200):
        for example in world.sample(index, prompts=6)[1]:
            assert not any(shape in example.prefix for shape in RESERVED_SHAPES)


def spelled(line: str) -> list[str]:
    """All that a wording with alternatives stands for."""
    parts = re.split(r"\[([^]]*)\]", line)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


WRITTEN_OUT = (
    *("above or below", "which side of", "words", "lines", "first word", "last word"),
    *("nth line", "text colour", "sign colour", "fact bar colour"),
)


def test_alternatives_of_a_wording_are_never_a_held_out_one() -> None:
    held_out = {bare(line) for kind in KINDS for line in wordings(kind, True)}
    held_out |= {bare(line) for lines in others().values() for line in lines}
    for kind in KINDS:
        if kind.startswith("two "):  # of two pictures
            continue
        lines = wordings(kind + MORE, False)
        # Those of the last kinds are written out, none of them with alternatives.
        least = 24 if kind in WRITTEN_OUT else 41
        assert sum(len(spelled(line)) for line in lines) >= least, kind
        slots = {slot: slot for line in wordings(kind, False) for slot in SLOT.findall(line)}
        if kind.startswith("fact ") and not kind.endswith(" of"):
            slots["page"] = "page"  # which all of these are asked with
        slots["pic"] = "pic"
        for line in lines:
            assert {bare(text) for text in spelled(line)} - held_out, line
            for text in spelled(line):
                assert set(SLOT.findall(text)) <= set(slots), text
                assert not re.search(r"[\[\]|]", text), text
        rng, own = np.random.default_rng(3), {k: v for k, v in slots.items() if k != "pic"}
        said = {say(kind, rng, "training", **own) for _ in range(500)}
        assert not any("  " in text for text in said)
        tested = wordings(kind, True) + tuple(others().get(kind, ()))
        assert {slot for line in tested for slot in SLOT.findall(line)} <= set(slots), kind
        filled = {bare(line.format(**slots)) for line in tested}
        assert not {re.sub(PICTURE, "pic", bare(text)) for text in said} & filled
