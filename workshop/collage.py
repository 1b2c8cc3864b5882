"""A picture in the spirit of mini's world that the world did not make: stickers in a copybook.

    python -m workshop.collage --out assets/collage.png

One SVG, written here by hand around Noto's icons (Apache-2.0) and rendered by resvg: ruled paper
with a margin, which no scene that mini was trained on has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import resvg_py
import typer

from paliglass.files import replacing
from workshop.commands import CACHE, WorldCache, run
from workshop.world.sources import SOURCES, fetch, read_members

SIDE = 512
RULES = "".join(f"M0 {y}H512" for y in range(44, SIDE, 52))
PAPER = f"""\
<rect width="512" height="512" fill="#fdf6e3"/>
<path d="{RULES}" stroke="#b5cbe0" stroke-width="2"/>
<path d="M64 0V512" stroke="#e0a0a0" stroke-width="2"/>
"""
# Icon, centre and side in pixels.
THINGS = (("pig-face", 160, 370, 200), ("airplane", 370, 130, 190), ("cactus", 390, 380, 190))


def draw(cache: Path) -> bytes:
    """The picture as PNG."""
    noto = SOURCES[0]
    icons = json.loads(read_members(fetch(noto, cache), noto.members)[0])
    size = icons["width"]
    parts = [PAPER]
    for name, x, y, side in THINGS:
        parts.append(
            f'<svg x="{x - side / 2}" y="{y - side / 2}" width="{side}" height="{side}" '
            f'viewBox="0 0 {size} {size}">{icons["icons"][name]["body"]}</svg>'
        )
    whole = "".join(parts)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {SIDE} {SIDE}">{whole}</svg>'
    )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))


def collage(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The PNG.")] = Path(
        "assets/collage.png"
    ),
    world_cache: WorldCache = CACHE,
) -> None:
    """Draw a picture in the spirit of mini's world that the world did not make."""
    with replacing(out) as unfinished:
        unfinished.write_bytes(draw(world_cache))
    print(out)


if __name__ == "__main__":
    run(collage)
