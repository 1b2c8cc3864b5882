"""What no learning at all scores: the nearest sticker, pixel by pixel.

A score on pictures of single stickers means something only beside this one: stickers of one concept
look alike across vendors, and some can be told by their colours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from workshop.world.art import Art
    from workshop.world.engine import World

__all__ = ["PixelNeighbours", "cut_out", "single_stickers"]

_GREY = 128


class PixelNeighbours:
    """Names a picture after the most similar of all vendors' stickers, each on grey, and mirrored.

    Pictures are scaled to side × side and their mean is taken off; what is compared is the cosine.

    Args:
        art: the stickers it knows.
        side: in pixels.
    """

    def __init__(self, art: Art, side: int = 32) -> None:
        self.side = side
        pictures, self.names = [], []
        for name, drawings in art.stickers.items():
            for drawing in drawings:
                picture = np.asarray(_on_grey(drawing))
                pictures += [picture, picture[:, ::-1]]
                self.names += [name] * 2
        self.known = self._vectors(pictures)

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
        """For each picture (uint8 S × S × 3) the nearest sticker's name."""
        nearest = (self._vectors(pictures) @ self.known.T).argmax(axis=1)
        return [self.names[index] for index in nearest]

    def _vectors(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N × 3·side², rows of mean 0 and length 1."""
        small = [
            Image.fromarray(np.ascontiguousarray(picture)).resize(
                (self.side, self.side), Image.Resampling.BOX
            )
            for picture in pictures
        ]
        rows = np.stack([np.asarray(picture, np.float32).ravel() for picture in small])
        rows -= rows.mean(axis=1, keepdims=True)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.maximum(length, 1e-6)  # a picture of one colour is like nothing


def _on_grey(sticker: Image.Image, margin: float = 0.1) -> Image.Image:
    """A sticker (`RGBa`) in the middle of a grey square, with a margin (share of its side)."""
    side = round(max(sticker.size) * (1 + 2 * margin))
    square = Image.new("RGB", (side, side), (_GREY, _GREY, _GREY))
    corner = ((side - sticker.width) // 2, (side - sticker.height) // 2)
    straight = sticker.convert("RGBA")
    square.paste(straight, corner, straight)
    return square


def cut_out(
    image: NDArray[np.uint8], box: tuple[int, int, int, int], margin: float
) -> NDArray[np.uint8]:
    """The square around a box and a margin (share of its longer side), scaled to the image's size.

    The square is moved into the image, never squeezed.
    """
    size = image.shape[0]
    x0, y0, x1, y1 = box
    side = min(float(size), max(x1 - x0, y1 - y0) * (1 + margin))
    left = min(max((x0 + x1 - side) / 2, 0), size - side)
    top = min(max((y0 + y1 - side) / 2, 0), size - side)
    picture = Image.fromarray(image).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.asarray(picture)


def single_stickers(
    world: World, of_each: int, margin: float = 0.2
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Stickers that have a scene to themselves, cut out of it: `of_each` pictures of each concept.

    Returns the pictures (uint8 S × S × 3) and the concepts' names.
    """
    names = [name for name in world.art.stickers for _ in range(of_each)]
    scenes = [world.single(name, index) for index, name in enumerate(names)]
    return [cut_out(s.image, s.objects[0].box, margin) for s in scenes], names
