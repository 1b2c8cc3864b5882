"""`python -m workshop.world`: the picture world looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from workshop.commands import CACHE, WorldCache, run
from workshop.world.engine import World
from workshop.world.preview import contact_sheet

SPLITS = "train validation test style composition reading digits photos".split()


def world(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The PNG to write.")],
    split: Annotated[str, typer.Option(help=f"One of {', '.join(SPLITS)}.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=400, help="Scenes.")] = 24,
    start: Annotated[int, typer.Option(min=0, help="The first scene's number.")] = 0,
    columns: Annotated[int, typer.Option(min=1, help="Scenes in a row.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Of a scene, in pixels.")] = 128,
    world_cache: WorldCache = CACHE,
) -> None:
    """Draw a contact sheet: scenes with their boxes and masks, prompts and answers below."""
    if split not in SPLITS:
        raise typer.BadParameter(f"--split {split} is none of {', '.join(SPLITS)}")
    name: Any = split
    sheet = contact_sheet(World(world_cache, name, seed, size), start, count, columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.tmp")
    sheet.save(unfinished, "PNG")
    os.replace(unfinished, out)
    print(f"{out}: {count} scenes of {split}")


if __name__ == "__main__":
    run(world)
