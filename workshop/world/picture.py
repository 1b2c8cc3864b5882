"""The pictures in `assets/`: `python -m workshop.world.picture --out assets`.

Laid out by hand from the training art, whose licences allow it (see ATTRIBUTION.md); the layout
and the word on the sign are in no training scene.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from workshop.world.concepts import COLOURS
from workshop.world.sources import Art, load_art

__all__ = ["draw_scene", "draw_sign", "main"]

_SIZE = 512
_NOTO, _FLUENT = 0, 2  # places among the training vendors
_SIGN_FONT = 2
_SIGN_WORD = "TOY"  # held out: see words.is_held_out


def draw_scene(art: Art) -> Image.Image:
    """A dog, an apple and a blue circle."""
    picture = _ground((205, 230, 247), (238, 244, 226))
    _stick(picture, art.stickers["dog"][_NOTO], centre=(150, 300), height=220, angle=4)
    _stick(picture, art.stickers["apple"][_NOTO], centre=(370, 370), height=170, angle=-8)
    disc = Image.new("L", (640, 640))
    ImageDraw.Draw(disc).ellipse((0, 0, 639, 639), fill=255)
    picture.paste(COLOURS["blue"], (290, 60), disc.reduce(4))
    return picture


def draw_sign(art: Art) -> Image.Image:
    """The word TOY above a cup."""
    picture = _ground((250, 240, 214), (246, 226, 205))
    font = art.fonts[_SIGN_FONT].font_variant(size=128)
    ImageDraw.Draw(picture).text((256, 130), _SIGN_WORD, (32, 34, 44), font, anchor="mm")
    _stick(picture, art.stickers["cup"][_FLUENT], centre=(262, 355), height=200, angle=0)
    return picture


def _ground(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, _SIZE)[:, None, None]
    field: NDArray[np.float64] = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    rows = np.broadcast_to(np.rint(field), (_SIZE, _SIZE, 3))
    return Image.fromarray(rows.astype(np.uint8))


def _stick(
    picture: Image.Image, sticker: Image.Image, centre: tuple[int, int], height: int, angle: float
) -> None:
    width = round(sticker.width * height / sticker.height)
    turned = sticker.resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
    turned = ImageOps.expand(turned, 2, (0, 0, 0, 0))  # turning blends the edges with it
    turned = turned.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    corner = (centre[0] - turned.width // 2, centre[1] - turned.height // 2)
    picture.paste(turned, corner, turned)


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description="draws the pictures in assets/")
    parser.add_argument("--cache", type=Path, default=Path(".cache/world"))
    parser.add_argument("--out", type=Path, default=Path("assets"))
    arguments = parser.parse_args()
    art = load_art(arguments.cache, "train", _SIZE)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw_scene(art).save(arguments.out / "scene.png", optimize=True)
    draw_sign(art).save(arguments.out / "sign.png", optimize=True)


if __name__ == "__main__":
    main()
