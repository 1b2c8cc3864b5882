from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from workshop.world import World
from workshop.world.preview import contact_sheet
from workshop.world.sources import Art

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.mark.parametrize("name", ["scene.png", "sign.png"])
def test_the_pictures_in_the_repository_open(name: str) -> None:
    with Image.open(ASSETS / name) as picture:
        picture.load()
        assert (picture.mode, picture.size) == ("RGB", (512, 512))


def test_a_contact_sheet_has_a_cell_for_each_scene(art: Art) -> None:
    sheet = contact_sheet(World(art=art), start=0, count=5, columns=3)
    assert sheet.size == (3 * 256, 2 * (256 + 100))
    assert sheet.getpixel((700, 450)) == (255, 255, 255)  # the sixth cell stays empty
