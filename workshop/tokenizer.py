"""What mini's tokenizer is learned from: the names of emoji, and what the world says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workshop.world.sources import Source, default_cache, fetch, read_members

PLACE = re.compile(r"<loc\d{4}>|<seg\d{3}>")


def emoji_names(cache: Path | None = None) -> list[str]:
    """What Unicode's emoji are called: everyday words beyond those of the world."""
    source = Source(
        "unicode-emoji-json",
        "0.9.0",
        "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
        licence="MIT",
        family="names",
        role="train",
        members=("package/data-by-emoji.json",),
    )
    (data,) = read_members(fetch(source, cache or default_cache()), source.members)
    return [emoji["name"].lower() for emoji in json.loads(data).values()]


def training_texts(world: Any, scenes: int = 3000, prompts: int = 8) -> Iterator[str]:
    """What a world's prompts and answers say, in numbers that let its words become tokens."""
    for index in range(scenes):
        _, examples = world.sample(index, prompts=prompts)
        for example in examples:
            yield example.prefix
            yield PLACE.sub("", example.suffix)
