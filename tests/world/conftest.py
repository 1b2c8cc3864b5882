"""A tiny set of art drawn in code, so that these tests need neither npm nor a network."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from workshop.world.art import Art, Face
from workshop.world.concepts import CONCEPTS


def sticker(channel: int, corner: int) -> Image.Image:
    """A solid disc of pure red, green or blue; `corner` tells vendors apart."""
    picture = Image.new("RGBA", (60, 60))
    colour = tuple(255 if index == channel else 0 for index in range(3))
    ImageDraw.Draw(picture).rounded_rectangle((0, 0, 59, 59), corner, fill=(*colour, 255))
    return picture.convert("RGBa")


@pytest.fixture(scope="session")
def face() -> Face:
    """Pillow's own face."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert isinstance(font.path, io.BytesIO)
    return Face("default", font.path.getvalue())


@pytest.fixture(scope="session")
def art(face: Face) -> Art:
    ink = np.random.default_rng(0).integers(0, 256, (10, 5, 28, 28), dtype=np.uint8)
    return Art(
        stickers={
            name: tuple(sticker(index % 3, corner) for corner in (30, 22, 14, 6))
            for index, name in enumerate(CONCEPTS)
        },
        digits=tuple(ink),
        fonts=(face, face, face),
    )
