"""A world of one coloured square per scene: enough to learn from, with no artwork to fetch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 230, 0)}


@dataclass(frozen=True)
class Example:
    prefix: str
    suffix: str

    @property
    def task(self) -> str:
        return self.prefix.split(" ", 1)[0]


@dataclass(frozen=True)
class Thing:
    label: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    image: np.ndarray
    objects: tuple[Thing, ...]

    def patch_labels(self, rows: int, columns: int | None = None) -> np.ndarray:
        """Which colour is at a patch's centre."""
        down, across = self.image.shape[0] // rows, self.image.shape[1] // (columns or rows)
        centres = self.image[down // 2 :: down, across // 2 :: across]
        labels = np.zeros(centres.shape[:2], dtype=np.int64)
        for i, colour in enumerate(COLOURS.values(), 1):
            labels[(centres == colour).all(-1)] = i
        return labels.ravel()


class FakeWorld:
    """Scenes of a square, 3/8 of the side wide, on grey."""

    patch_classes = ("ground", *COLOURS)

    def __init__(self, size: int = 128, seed: int = 0) -> None:
        self.size, self.seed = size, seed

    def scene(self, index: int) -> Scene:
        return self.sample(index, 1)[0]

    def sample(self, index: int, prompts: int) -> tuple[Scene, list[Example]]:
        rng = np.random.default_rng((self.seed, index))
        name = str(rng.choice(list(COLOURS)))
        side = self.size * 3 // 8
        x, y = (int(v) for v in rng.integers(0, self.size - side, 2))
        image = np.full((self.size, self.size, 3), 128, dtype=np.uint8)
        image[y : y + side, x : x + side] = COLOURS[name]
        box = (x, y, x + side, y + side)
        places = [round(round(v / self.size * 64) / 64 * 1023) for v in (y, x, y + side, x + side)]
        answers = [
            Example("caption en", f"a {name} square"),
            Example("answer en what colour is the square?", name),
            Example("detect square", "".join(f"<loc{v:04}>" for v in places) + " square"),
            Example("ocr", ""),
        ]
        return Scene(image, (Thing("square", box),)), (answers * 2)[:prompts]
