"""The baseline sees pixels and nothing else; single things are cut out whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.world.conftest import sticker
from workshop.world import World
from workshop.world.art import Art
from workshop.world.baseline import PixelNeighbours, cut_out, single_stickers
from workshop.world.concepts import CONCEPTS, with_article
from workshop.world_pairs import WorldPairs


def arrow(turn: int) -> Image.Image:
    picture = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(picture).polygon([(0, 0), (59, 0), (0, 59)], fill=(255, 0, 0, 255))
    return picture.rotate(turn).convert("RGBa")


def test_the_nearest_sticker_names_a_picture(art: Art) -> None:
    stickers = {"disc": (sticker(0, 30),), "square": (sticker(0, 2),), "arrow": (arrow(0),)}
    stickers["blue"] = (sticker(2, 30),)
    nearest = PixelNeighbours(Art(stickers, art.digits, art.fonts), side=16)
    pictures = []
    for (drawing,) in stickers.values():
        ground = Image.new("RGB", (74, 74), (150, 150, 150))
        ground.paste(drawing.convert("RGBA"), (7, 7), drawing.convert("RGBA"))
        pictures.append(np.asarray(ground))
    assert nearest(pictures) == list(stickers)
    mirrored = [picture[:, ::-1] for picture in pictures]
    assert nearest(mirrored) == list(stickers)
    assert nearest([np.full((80, 80, 3), 7, np.uint8)])[0] in stickers


@pytest.mark.parametrize("box", [(10, 20, 30, 34), (0, 0, 8, 6), (40, 2, 64, 64), (0, 0, 64, 64)])
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_what_is_cut_out_is_all_there(box: tuple[int, int, int, int], margin: float) -> None:
    x0, y0, x1, y1 = box
    image = np.zeros((64, 64, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    part = cut_out(image, box, margin)
    assert part.shape == image.shape
    side = min(64.0, max(x1 - x0, y1 - y0) * (1 + margin))
    expected = (x1 - x0) * (y1 - y0) / side**2
    assert part.mean() / 255 == pytest.approx(expected, abs=0.06)


def test_single_stickers_show_what_they_are_called(art: Art) -> None:
    few = Art(dict(list(art.stickers.items())[:60]), art.digits, art.fonts)
    pictures, names = single_stickers(World(split="test", size=48, art=few), of_each=2)
    assert names == [name for name in few.stickers for _ in range(2)]
    for picture, name in zip(pictures, names, strict=True):
        channel = list(CONCEPTS).index(name) % 3  # the test art's colour for it
        middle = picture[20:28, 20:28].reshape(-1, 3).mean(0)
        assert middle.argmax() == channel
        assert middle[channel] > 200


def test_the_world_has_captions_and_single_things(art: Art) -> None:
    world = World(size=48, art=art)
    scenes = WorldPairs(world, single=0.0)
    assert np.array_equal(scenes[3].pixels, world.scene(3).image)
    singles = WorldPairs(world, single=1.0)
    names = {with_article(name) for name in CONCEPTS}
    found = [singles[i] for i in range(40)]
    assert len([pair for pair in found if pair.text in names]) > 10
    assert all(pair.pixels.shape == (48, 48, 3) for pair in found)
    again = singles[3]
    assert again.text == found[3].text
    assert np.array_equal(again.pixels, found[3].pixels)
