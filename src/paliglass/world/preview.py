"""A contact sheet of scenes with their boxes and prompts: `python -m paliglass.world.preview`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from paliglass.world.engine import World

__all__ = ["contact_sheet", "main"]

_SCALE = 2
_TEXT_HEIGHT = 120


def contact_sheet(world: World, start: int, count: int, columns: int = 6) -> Image.Image:
    """`count` scenes from index `start`: each with its boxes drawn and its prompts below."""
    side = world.size * _SCALE
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + _TEXT_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for cell in range(count):
        scene, prompts = world.sample(start + cell)
        x, y = cell % columns * side, cell // columns * (side + _TEXT_HEIGHT)
        sheet.paste(Image.fromarray(scene.image).resize((side, side)), (x, y))
        for thing in scene.objects:
            x0, y0, x1, y1 = (edge * _SCALE for edge in thing.box)
            draw.rectangle((x + x0, y + y0, x + x1 - 1, y + y1 - 1), outline=(255, 0, 160))
        lines = [
            line
            for example in prompts
            for line in textwrap.wrap(f"{example.prefix} → {example.suffix}", 44)
        ]
        draw.text((x + 3, y + side + 2), "\n".join(lines), fill="black", font=font, spacing=1)
    return sheet


def main() -> None:
    """Writes the sheet to a PNG file."""
    parser = argparse.ArgumentParser(description="a contact sheet of the picture world")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument(
        "--split", choices=("train", "test", "style", "validation"), default="train"
    )
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("world.png"))
    arguments = parser.parse_args()
    world = World(arguments.cache, arguments.split)
    contact_sheet(world, arguments.start, arguments.count).save(arguments.out)


if __name__ == "__main__":
    main()
