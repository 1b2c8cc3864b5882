"""`python -m workshop.tokenizer`: mini's, from emoji's names and the picture world's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from tokenizers import Tokenizer

from paliglass.checkpoints.folder import load_tokenizer
from paliglass.files import write_whole
from paliglass.training.tokenizer import train_tokenizer
from workshop.commands import CACHE, WorldCache, run
from workshop.world import World
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


def learn_tokenizer(cache: Path | None, world: Any) -> Tokenizer:
    """A tokenizer of the emoji's names and of what a world says."""
    return train_tokenizer(chain(emoji_names(cache), training_texts(world)))


def run_tokenizer(path: Path, cache: Path | None, world: Any, given: Path | None) -> Tokenizer:
    """A run's tokenizer: the given model's, else one that is learned at the start of the run."""
    if not path.exists():
        words = learn_tokenizer(cache, world) if given is None else load_tokenizer(given)
        write_whole(path, words.to_str(pretty=True))
    return Tokenizer.from_file(str(path))


def shipped_tokenizer() -> Tokenizer:
    """The one in the package, of the mini that ships."""
    return Tokenizer.from_file(str(files("paliglass") / "mini" / "tokenizer.json"))


def tokenizer(
    out: Annotated[Path, typer.Option(dir_okay=False, help="The tokenizer.json to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the world's scenes.")] = 0,
    world_cache: WorldCache = CACHE,
) -> None:
    """Learn a tokenizer from the names of emoji and the picture world's prompts and answers."""
    words = learn_tokenizer(world_cache, World(world_cache, "train", seed))
    write_whole(out, words.to_str(pretty=True))
    print(f"{out}: {words.get_vocab_size()} tokens")


if __name__ == "__main__":
    run(tokenizer)
