"""`python -m workshop.contrastive`: a dual encoder from the picture world's pairs, as mini-dual."""

from __future__ import annotations

from tokenizers import Tokenizer

from paliglass.cli.train.contrastive import EncoderOptions, train_dual
from paliglass.cli.train.group import RunOptions
from paliglass.contrastive.recipe import ContrastiveRecipe
from workshop.commands import CACHE, WorldCache, run
from workshop.tokenizer import shipped_tokenizer
from workshop.world import World
from workshop.world_pairs import WorldPairs


def contrastive(
    options: RunOptions,
    parts: EncoderOptions,
    recipe: ContrastiveRecipe,
    world_cache: WorldCache = CACHE,
) -> None:
    """Train a dual encoder on the picture world: scenes with captions, single things with names.

    Several processes share each batch: torchrun --nproc-per-node 2 -m workshop.contrastive …
    """

    def open_source() -> tuple[WorldPairs, Tokenizer]:
        return WorldPairs(World(world_cache, "train", recipe.seed, parts.side)), shipped_tokenizer()

    train_dual(options, parts, recipe, open_source, {})


if __name__ == "__main__":
    run(contrastive)
