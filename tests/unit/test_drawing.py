"""Drawings: everything is marked, tags can be read, nothing breaks them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from paliglass import Box, Detection, drawing
from paliglass.drawing import PALETTE, label_colours
from paliglass.tasks.results import Found, Segment


def draw(picture, *items, scale=1):
    return Found(items, *picture.size).draw(picture, scale)


@pytest.fixture
def tags(monkeypatch):
    """The rectangles of the name tags, as they are drawn."""
    drawn = []
    original = ImageDraw.ImageDraw.rounded_rectangle

    def spy(self, edges, *arguments, **options):
        drawn.append(edges)
        return original(self, edges, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", spy)
    return drawn


def overlap(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return width > 0 and height > 0


@pytest.mark.parametrize("ground", ["white", "black", "gray"])
def test_the_box_is_marked_and_the_original_left_alone(ground) -> None:
    picture = Image.new("RGB", (200, 100), ground)
    plain = picture.getpixel((0, 0))
    drawn = draw(picture, Detection("dog", Box(50, 40, 150, 90), 0.9))
    colour = label_colours(["dog"])["dog"]
    assert drawn.getpixel((50, 65)) == drawn.getpixel((100, 90)) == colour
    assert drawn.getpixel((100, 65)) == drawn.getpixel((10, 96)) == plain
    assert set(picture.get_flattened_data()) == {plain}
    # On one side of the line or the other, something differs clearly from the ground.
    rim = drawn.getpixel((49, 65))
    assert max(abs(a - b) for a, b in zip(colour, plain, strict=True)) > 90 or rim != plain


def test_a_mask_is_tinted_and_outlined() -> None:
    mask = np.zeros((100, 200), bool)
    mask[20:80, 40:120] = True
    picture = Image.new("RGB", (200, 100), "white")
    drawn = draw(picture, Segment("dog", Box(30, 10, 130, 90), mask, 0.9))
    colour = label_colours(["dog"])["dog"]
    assert drawn.getpixel((40, 50)) == drawn.getpixel((80, 79)) == colour
    tint = drawn.getpixel((80, 50))
    assert all(min(c, 255) <= t <= 255 for c, t in zip(colour, tint, strict=True))
    assert tint not in (colour, (255, 255, 255))
    assert drawn.getpixel((35, 50)) == (255, 255, 255)


def test_scale_enlarges() -> None:
    picture = Image.new("RGB", (40, 30), "white")
    drawn = draw(picture, Detection("dog", Box(10, 10, 30, 28), 0.9), scale=5)
    assert drawn.size == (200, 150)
    assert drawn.getpixel((50, 100)) == label_colours(["dog"])["dog"]


def test_colours_are_stable_and_distinct() -> None:
    labels = [f"label {i}" for i in range(len(PALETTE))]
    colours = label_colours(labels)
    assert len(set(colours.values())) == len(labels)
    for a, b in itertools.combinations(PALETTE, 2):
        assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 40
    assert label_colours(["dog", "apple"]) == label_colours(["apple", "dog", "dog"])
    assert len(label_colours([*labels, "one more"])) == len(labels) + 1


def test_forty_tags_stay_inside_and_apart(tags) -> None:
    generator = np.random.default_rng(0)
    items = []
    for i in range(40):
        x, y, width, height = generator.integers((0, 0, 30, 30), (520, 380, 120, 100)).tolist()
        items.append(Detection(f"label {i}", Box(x, y, x + width, y + height), 0.5))
    draw(Image.new("RGB", (640, 480)), *items)
    assert len(tags) == 40
    for x0, y0, x1, y1 in tags:
        assert 0 <= x0 < x1 < 640
        assert 0 <= y0 < y1 < 480
    assert not any(overlap(a, b) for a, b in itertools.combinations(tags, 2))


def test_the_same_box_ten_times_can_still_be_read(tags) -> None:
    items = [Detection(f"label {i}", Box(100, 100, 200, 150), 0.5) for i in range(10)]
    draw(Image.new("RGB", (320, 240)), *items)
    assert not any(overlap(a, b) for a, b in itertools.combinations(tags, 2))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 500), (500, 1), (40, 31), (3000, 50)])
@pytest.mark.parametrize(
    "box", [Box(0, 0, 8, 8), Box(-5, -5, 9999, 9999), Box(7, 7, 8, 8), Box(600, 600, 700, 700)]
)
def test_any_size_of_picture_can_be_drawn(size, box) -> None:
    picture = Image.new("RGB", size, "white")
    mask = np.ones(size[::-1], bool)
    found = [Detection("a long label", box, 1.0), Segment("a long label", box, mask, 1.0)]
    drawn = draw(picture, *found)
    assert drawn.size == size
    assert drawn.tobytes() != picture.tobytes()


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=40))
def test_any_label_can_be_drawn(label) -> None:
    picture = Image.new("RGB", (120, 90))
    assert draw(picture, Detection(label, Box(9, 30, 99, 80), 0.5)).size == picture.size


def test_letters_that_no_font_has_are_dots_and_never_boxes(monkeypatch) -> None:
    monkeypatch.setattr(drawing, "_FONTS", [])
    assert drawing._drawable("Hündchen", 14) in ("Hündchen", "Hundchen")
    assert drawing._drawable("two\n \x00 lines", 14) == "two lines"
    assert drawing._drawable("a 犬", 14) == "a ·"


def test_another_font_is_found_for_what_pillows_own_lacks(monkeypatch) -> None:
    font = drawing._font("DejaVuSans.ttf", 14)
    if font is None:
        pytest.skip("this system has no DejaVu")
    monkeypatch.setattr(drawing, "_FONTS", ["no such font.ttf", "DejaVuSans.ttf"])
    assert not drawing._has(drawing._font(None, 14), "ა")
    assert drawing._font_for("ა", 14) is font
    assert drawing._drawable("ა", 14) == "ა"
