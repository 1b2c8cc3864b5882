"""The picture world looked at, and packed for another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from paliglass.files import replacing, write_whole
from workshop.commands import CACHE, WorldCache, run
from workshop.world.art import build
from workshop.world.concepts import known_things
from workshop.world.engine import World
from workshop.world.preview import contact_sheet
from workshop.world.splits import SPLITS


def preview(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The PNG to write.")],
    split: Annotated[str, typer.Option(help=f"One of {', '.join(SPLITS)}.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=400, help="Scenes.")] = 24,
    start: Annotated[int, typer.Option(min=0, help="The first scene's number.")] = 0,
    columns: Annotated[int, typer.Option(min=1, help="Scenes in a row.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Of a scene, in pixels.")] = 192,
    world_cache: WorldCache = CACHE,
) -> None:
    """Draw a contact sheet: scenes with their boxes and masks, prompts and answers below."""
    if split not in SPLITS:
        raise typer.BadParameter(f"--split {split} is none of {', '.join(SPLITS)}")
    name: Any = split
    sheet = contact_sheet(World(world_cache, name, seed, size), start, count, columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as unfinished:
        sheet.save(unfinished, "PNG")
    print(f"{out}: {count} scenes of {split}")


def pack(world_cache: WorldCache = CACHE) -> None:
    """Make the files that the world needs on a machine without npm, a renderer or a network."""
    for role in ("text", "train"):
        path = build(world_cache, role)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def things(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The JSON file to write.")],
) -> None:
    """List what the world can show, each with other words for it: what mini can know."""
    known = known_things()
    write_whole(out, json.dumps(known, ensure_ascii=False, indent=1) + "\n")
    print(f"{out}: {len(known)} things")


if __name__ == "__main__":
    run(preview, pack, things)
