"""Plain drawings, documents, other styles and grounds: each says only what is there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from workshop.world.art import Face
from workshop.world.concepts import COLOURS, CONCEPTS
from workshop.world.documents import draw_page
from workshop.world.drawings import DRAWINGS, Pen, draw
from workshop.world.grounds import colour_name, draw_ground, static
from workshop.world.styles import restyle


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_lies_in_its_silhouette(name: str) -> None:
    assert name in CONCEPTS
    for seed in range(12):
        rng = np.random.default_rng(seed)
        picture, whole = draw(name, rng, 96, held_out=seed % 2 == 0)
        assert picture.size == whole.size
        assert min(picture.size) > 12
        painted, solid = np.asarray(picture)[..., 3] > 127, np.asarray(whole) > 127
        assert painted.mean() > 0.02
        assert (painted & ~solid).sum() <= 0.02 * painted.sum()


def test_forms_for_testing_are_kept_from_training() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = Pen(rng, 32, held_out=False), Pen(rng, 32, held_out=True)
    assert {ours.pick("a", "b", "c") for _ in range(50)} == {"a", "b"}
    assert {theirs.pick("a", "b", "c") for _ in range(50)} == {"c"}
    assert max(ours.vary(0, 1) for _ in range(200)) <= min(theirs.vary(0, 1) for _ in range(200))


def test_documents_add_up(face: Face) -> None:
    kinds = set()
    for seed in range(120):
        rng = np.random.default_rng(seed)
        page = draw_page(rng, face, 128, held_out=False)
        document = page.document
        kinds.add(document.kind)
        assert max(page.picture.shape[:2]) <= 128
        assert page.characters.shape == page.picture.shape[:2]
        assert page.characters.any()
        text = " ".join(document.lines)
        if document.kind == "receipt":
            cents = [round(100 * float(re.sub("[^0-9.]", "", price))) for price in prices(document)]
            total = round(100 * float(re.sub("[^0-9.]", "", document.facts["total"])))
            assert sum(cents) == total == sum(document.values.values())
        if document.kind == "bar chart":
            best = max(document.values, key=document.values.__getitem__)
            assert document.facts["highest"] == best
            assert document.facts["bars"] == str(len(document.values))
        for fact, answer in document.facts.items():
            if fact.startswith("colour of "):
                assert (page.picture == COLOURS[answer]).all(axis=2).any()
            else:
                assert answer in text or fact == "bars", (fact, answer, text)
    assert kinds == {"receipt", "menu", "invoice", "ticket", "form", "bar chart"}


def prices(document: object) -> list[str]:
    facts: dict[str, str] = document.facts  # type: ignore[attr-defined]
    return [answer for fact, answer in facts.items() if fact.startswith("price of ")]


def test_another_style_stays_premultiplied() -> None:
    rng = np.random.default_rng(0)
    alpha = np.zeros((40, 30, 1), np.uint8)
    alpha[5:35, 4:26] = 255
    alpha[4] = 120
    colour = rng.integers(0, 256, (40, 30, 3)).astype(np.uint16) * alpha // 255
    thing = np.concatenate((colour.astype(np.uint8), alpha), axis=2)
    shapes = set()
    for _ in range(200):
        other = restyle(thing, rng)
        assert other.dtype == np.uint8
        assert (other[..., :3] <= other[..., 3:]).all()
        assert 0.7 < (other[..., 3] > 127).sum() / (alpha > 127).sum() < 1.5
        shapes.add(other.tobytes())
    assert len(shapes) > 150


def test_colours_are_called_by_their_names() -> None:
    for name, rgb in COLOURS.items():
        assert colour_name(np.array(rgb, float)) in (name, None)
    assert colour_name(np.array((255.0, 255, 255))) == "white"
    assert colour_name(np.array((20.0, 60, 220))) == "blue"
    assert colour_name(np.array((222.0, 32, 38))) == "red"
    assert colour_name(np.array((170.0, 170, 150))) is None


@pytest.mark.parametrize("size", [96, 128, 130, 192])
def test_grounds_have_the_size_asked_for(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(60):
        picture, _ = draw_ground(rng, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        assert picture.flags.writeable
        assert static(rng, size).shape == (size, size, 3)
