"""The world: an endless, repeatable supply of scenes, one for each index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paliglass.errors import PaliglassError
from workshop.world.concepts import PATCH_CLASSES
from workshop.world.scenes import Scene, compose
from workshop.world.sources import Art, default_cache, load_art
from workshop.world.splits import SPLITS, Split
from workshop.world.tasks import Example, examples

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
        style: with the stickers of held-out vendors.
        composition: every scene holds a pair of concepts that no scene of another split holds,
            or a coloured shape that none does (`splits.is_reserved`).
        reading, digits: every scene holds a word or random letters (told apart by
            `words.is_word`), or a handwritten digit.
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
        self.art = load_art(folder, split, size) if art is None else art

    @property
    def patch_classes(self) -> tuple[str, ...]:
        """The names of the classes that `Scene.patch_labels` gives."""
        return PATCH_CLASSES

    def scene(self, index: int) -> Scene:
        """The scene at `index`."""
        return compose(self._rng(index, 0), self.art, self.size, SPLITS[self.split])

    def sample(self, index: int, prompts: int = 4) -> tuple[Scene, list[Example]]:
        """The scene at `index` with that many different prompts about it."""
        scene = self.scene(index)
        return scene, examples(scene, self._rng(index, 1), prompts, self.codec, self.mixture)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS[self.split].number, index, stream))
