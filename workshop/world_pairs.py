"""Pairs of the picture world, for contrastive training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from paliglass.contrastive.pairs import Pair
from workshop.world.baseline import cut_out
from workshop.world.concepts import with_article
from workshop.world.tasks import caption


class WorldPairs:
    """Pair `index` of a picture world: a scene with its caption, or one thing with its name.

    A caption names everything in a scene, so telling two scenes apart takes the whole of it. A
    single thing, cut out of its scene with a margin, shows what one word means.

    Args:
        world: a `workshop.world.World`.
        single: the share of pairs that are single things.
    """

    count: int | None = None

    def __init__(self, world: Any, single: float = 0.4) -> None:
        self.world, self.single = world, single

    def __getitem__(self, index: int) -> Pair:
        """The pair, the same at every call."""
        scene = self.world.scene(index)
        rng = np.random.default_rng((self.world.seed, index))
        if rng.random() >= self.single:
            return Pair(scene.image, caption(scene))
        if not scene.objects:
            return Pair(scene.image, caption(scene))
        thing = scene.objects[rng.integers(len(scene.objects))]
        picture = cut_out(scene.image, thing.box, rng.uniform(0.05, 0.4))
        # Labels come bare, too: "dog" at a text's start is another token than in "a dog".
        return Pair(picture, thing.name if rng.random() < 0.3 else _name(thing))

    def texts(self) -> Iterator[str]:
        return (self[index].text for index in range(3000))


def _name(thing: Any) -> str:
    if thing.kind in ("word", "digit"):
        return f"the {thing.kind} {thing.label}"
    return with_article(thing.name)
