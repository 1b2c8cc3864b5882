"""What a split is made of, and that nothing reserved is ever in training."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from workshop.world import World
from workshop.world.concepts import CONCEPTS
from workshop.world.photos import photo_names
from workshop.world.sources import Art
from workshop.world.splits import (
    RESERVED_SHAPES,
    SPLITS,
    is_reserved,
    is_reserved_pair,
    reserved_partners,
)
from workshop.world.words import WORDS, is_held_out, is_word

MANIFEST = Path(__file__).with_name("manifest.json")


def names_of(world: World, index: int) -> list[str]:
    return [thing.name for thing in world.scene(index).objects]


def manifest() -> dict[str, object]:
    """What follows from the rules, in names and numbers."""
    pairs = ["+".join(sorted(p)) for p in combinations(CONCEPTS, 2) if is_reserved_pair(*p)]
    return {
        "concepts": len(CONCEPTS),
        "splits": {name: rules.number for name, rules in SPLITS.items()},
        "reserved shapes": list(RESERVED_SHAPES),
        "reserved pairs": len(pairs),
        "first reserved pairs": sorted(pairs)[:40],
        "held-out words": sorted(word for word in WORDS if is_held_out(word)),
        "photographs": {name: len(stamps) for name, stamps in sorted(photo_names().items())},
    }


def test_the_splits_are_those_of_the_manifest() -> None:
    """Moving a thing from one side to the other would void every published score."""
    assert manifest() == json.loads(MANIFEST.read_text("utf-8"))


def test_pairs_are_reserved_either_way_round_and_for_every_concept() -> None:
    share = sum(is_reserved_pair(*pair) for pair in combinations(CONCEPTS, 2)) / (256 * 255 / 2)
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


def test_reading_and_digits_have_one_text_in_every_scene(art: Art) -> None:
    for split, kind in (("reading", "word"), ("digits", "digit")):
        world = World(art=art, split=split)  # type: ignore[arg-type]
        texts = []
        for index in range(100):
            texts += [t.label for t in world.scene(index).objects if t.kind == kind]
        assert len(texts) == 100
        if kind == "word":
            assert all(map(is_held_out, texts))
            assert 25 < sum(map(is_word, texts)) < 75


def test_no_reserved_shape_is_asked_for_where_there_is_none(art: Art) -> None:
    world = World(art=art)
    for index in range(200):
        for example in world.sample(index, prompts=6)[1]:
            assert not any(shape in example.prefix for shape in RESERVED_SHAPES)
