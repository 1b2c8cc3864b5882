"""A contact sheet of scenes: what is in them, drawn from the ground truth, and what is asked."""

from __future__ import annotations

import re
import textwrap

from PIL import Image, ImageDraw, ImageFont

from paliglass.tasks.boxes import Box
from paliglass.tasks.results import Found, Segment
from workshop.world.engine import World

__all__ = ["contact_sheet"]

_SCALE = 2
_TEXT_HEIGHT = 100
_TOKENS = re.compile(r"(<loc\d{4}>|<seg\d{3}>)+ ?")


def contact_sheet(world: World, start: int, count: int, columns: int = 6) -> Image.Image:
    """`count` scenes from index `start`, boxes and masks drawn, prompts and answers below.

    Location and segment tokens are left out of the answers: they are what is drawn.
    """
    columns = min(columns, count)
    side = world.size * _SCALE
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + _TEXT_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for cell in range(count):
        scene, prompts = world.sample(start + cell)
        x, y = cell % columns * side, cell // columns * (side + _TEXT_HEIGHT)
        things = (
            Segment(thing.name, Box(*map(float, thing.box)), scene.mask(thing), 1.0)
            for thing in scene.objects
        )
        found = Found(things, world.size, world.size)
        sheet.paste(found.draw(scene.image, _SCALE, scores=False), (x, y))
        lines = [
            line
            for example in prompts
            for line in textwrap.wrap(
                f"{example.prefix}: {_TOKENS.sub('', example.suffix) or 'nothing'}",
                side // 6,
                max_lines=2,
                placeholder=" …",
            )
        ]
        draw.text((x + 3, y + side + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet
