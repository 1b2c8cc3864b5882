from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from workshop.world import World
from workshop.world.concepts import COLOURS
from workshop.world.picture import draw_scene, draw_sign
from workshop.world.preview import contact_sheet
from workshop.world.sources import Art

ASSETS = Path(__file__).parents[2] / "assets"


def test_the_scene_has_its_circle(art: Art) -> None:
    picture = draw_scene(art)
    assert picture.size == (512, 512)
    assert picture.getpixel((370, 140)) == COLOURS["blue"]


def test_the_sign_has_ink_and_a_cup(art: Art) -> None:
    bare = Art(art.stickers, art.digits, art.fonts)
    picture = draw_sign(bare)
    dark = sum(picture.crop((0, 0, 512, 240)).convert("L").histogram()[:60])
    assert dark > 512 * 240 // 50
    assert picture.getpixel((262, 355)) != picture.getpixel((5, 355))


@pytest.mark.parametrize("name", ["scene.png", "sign.png"])
def test_the_pictures_in_the_repository_open(name: str) -> None:
    with Image.open(ASSETS / name) as picture:
        picture.load()
        assert (picture.mode, picture.size) == ("RGB", (512, 512))


def test_a_contact_sheet_has_a_cell_for_each_scene(art: Art) -> None:
    sheet = contact_sheet(World(art=art), start=0, count=5, columns=3)
    assert sheet.size == (3 * 256, 2 * (256 + 100))
    assert sheet.getpixel((700, 450)) == (255, 255, 255)  # the sixth cell stays empty
