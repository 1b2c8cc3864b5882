"""The world: an endless, repeatable supply of scenes, one for each index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paliglass.errors import PaliglassError
from workshop.world.art import Art, load_art
from workshop.world.concepts import PATCH_CLASSES
from workshop.world.scenes import Scene, compose
from workshop.world.sources import default_cache
from workshop.world.splits import SPLITS, Split
from workshop.world.tasks import Example, examples, pair_examples

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["World"]


class World:
    """Scenes of one split, each determined by (seed, split, index, size) alone.

    The splits:
        train: what models learn from.
        validation: new scenes of all that "train" is made of, to tune and calibrate on.
        test: new scenes of the training vendors, with held-out words, fonts and handwritten
            digits; so have all that follow.
        wordings: the same, asked in the wordings that training never uses.
        unknown: half of the pictures are empty, and half of what is asked cannot be answered.
        style: with the stickers of held-out vendors.
        composition: every scene holds a pair of concepts that no scene of another split holds,
            or a coloured shape that none does (`splits.is_reserved`).
        reading, lines, digits: every scene holds a word or random letters (told apart by
            `words.is_word`), some short lines or a price, or a handwritten digit.
        plain: every scene holds drawings from primitives, in forms that training has not.
        documents: receipts, tickets, forms and bar charts.
        photos: with cut-out photographs for stickers, of the concepts that there are some of.

    It can be pickled, and holds no state that a worker process would have to share.

    Args:
        cache: folder for fetched and rendered art; `.cache/world` by default.
        split: one of those.
        seed: another seed gives another world of the same kind.
        size: side of the scenes in pixels.
        art: what to compose scenes of, in place of the split's own.
        codec: writes the answers to `segment …`; without one, nothing is asked to be segmented.
        mixture: how much more often than usual a task is asked: `{"segment": 1.5}`.

    Raises:
        PaliglassError: no such split, or the art cannot be had.
    """

    def __init__(
        self,
        cache: Path | str | None = None,
        split: Split = "train",
        seed: int = 0,
        size: int = 128,
        *,
        art: Art | None = None,
        codec: MaskCodec | None = None,
        mixture: Mapping[str, float] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise PaliglassError(f"no split {split!r}: take one of {', '.join(SPLITS)}")
        self.split = split
        self.seed = seed
        self.size = size
        self.codec = codec
        self.mixture = dict(mixture or {})
        folder = default_cache() if cache is None else Path(cache)
        self.art = load_art(folder, split) if art is None else art

    @property
    def patch_classes(self) -> tuple[str, ...]:
        """The names of the classes that `Scene.patch_labels` gives."""
        return PATCH_CLASSES

    def scene(self, index: int) -> Scene:
        """The scene at `index`."""
        return compose(self._rng(index, 0), self.art, self.size, SPLITS[self.split])

    def single(self, name: str, index: int) -> Scene:
        """A scene that holds one sticker of a concept and nothing else."""
        return compose(self._rng(index, 3), self.art, self.size, SPLITS[self.split], name)

    def sample(self, index: int, prompts: int = 4) -> tuple[Scene, list[Example]]:
        """The scene at `index` with that many different prompts about it."""
        scene, rules = self.scene(index), SPLITS[self.split]
        rng = self._rng(index, 1)
        return scene, examples(scene, rng, prompts, self.codec, self.mixture, rules)

    def pair(self, index: int, prompts: int = 4) -> tuple[tuple[Scene, Scene], list[Example]]:
        """Scenes `index` and `index` + 1, or one twice, with questions about the two together."""
        rng = self._rng(index, 2)
        first = self.scene(index)
        second = first if rng.random() < 0.1 else self.scene(index + 1)
        asked = pair_examples(first, second, rng, prompts, SPLITS[self.split])
        return (first, second), asked

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS[self.split].number, index, stream))
