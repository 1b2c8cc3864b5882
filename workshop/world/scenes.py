"""Composing a scene: a ground, and one to four things on it, with exact ground truth.

Each thing becomes a `Layer` (premultiplied colour, alpha, a class for each pixel); layers are
pasted in order, and one byte a pixel keeps which thing is on top. Boxes, masks, visibility and
patch classes all come from that map, so they agree with what is to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from workshop.world.concepts import (
    CHARACTERS,
    COLOURS,
    CONCEPTS,
    PATCH_CLASS_IDS,
    PATCH_CLASSES,
    SHAPES,
)
from workshop.world.sources import Art
from workshop.world.splits import RESERVED_SHAPES, Rules, is_reserved, reserved_partners
from workshop.world.words import random_text

__all__ = ["Scene", "SceneObject", "compose"]

Kind = Literal["sticker", "shape", "word", "digit"]
Box = tuple[int, int, int, int]

_MIN_VISIBLE = 0.4
_MIN_CAP_HEIGHT = 18 / 128  # of the side: below this, letters are too small to be asked for


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    label: the concept, the shape, the word itself or the digit; colour: of shapes only;
    box: x0, y0, x1, y1 in pixels around all that is visible of it (x1 and y1 exclusive);
    visible: the fraction of it that neither the frame nor another thing hides;
    mask: the pixels of its box, (y1 − y0)×(x1 − x0), that show it.
    """

    kind: Kind
    label: str
    colour: str | None
    box: Box
    visible: float
    mask: NDArray[np.bool_] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called: "dog", "red circle"; the bare label for words and digits."""
        return f"{self.colour} {self.label}" if self.colour else self.label

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box, x and y in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    image: H×W×3; objects: from left to right; classes: H×W, an index into `PATCH_CLASSES`.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    classes: NDArray[np.uint16]

    def mask(self, thing: SceneObject) -> NDArray[np.bool_]:
        """The pixels of the whole picture, H×W, that show one of its things."""
        x0, y0, x1, y1 = thing.box
        whole = np.zeros(self.classes.shape, np.bool_)
        whole[y0:y1, x0:x1] = thing.mask
        return whole

    def patch_labels(self, grid: int = 8) -> NDArray[np.int64]:
        """The class that covers most of each of grid×grid patches, row by row.

        The ground counts only where no thing covers a fifth of the patch, for thin things (a
        bicycle, a key) never cover half of one. The image's side must be a multiple of `grid`.

        Returns:
            grid², indices into `PATCH_CLASSES`.
        """
        side = self.classes.shape[0] // grid
        cells = self.classes.reshape(grid, side, grid, side).swapaxes(1, 2).reshape(grid**2, -1)
        count = len(PATCH_CLASSES)
        flat = cells + np.arange(grid**2)[:, None] * count
        counts = np.bincount(flat.ravel(), minlength=grid**2 * count).reshape(-1, count)
        counts[:, 0] = side**2 // 5
        labels: NDArray[np.int64] = counts.argmax(axis=1).astype(np.int64)
        return labels


@dataclass(frozen=True)
class _Layer:
    """A thing ready to be pasted; all arrays are h×w (×3).

    colour: premultiplied by alpha; classes: what each pixel stands for, 0 for nothing.
    """

    kind: Kind
    label: str
    colour_name: str | None
    colour: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    classes: NDArray[np.uint16]


def compose(rng: np.random.Generator, art: Art, size: int, rules: Rules) -> Scene:
    """A random scene of size×size pixels.

    Args:
        rng: where every choice comes from.
        art: what there is to place.
        size: side in pixels.
        rules: the split's, which may keep words and combinations of things from it.
    """
    while True:
        ground = _ground(rng, size)
        scene = _place(rng, art, ground, rules)
        if scene is not None:
            return scene


def _place(
    rng: np.random.Generator, art: Art, ground: NDArray[np.uint8], rules: Rules
) -> Scene | None:
    """Things placed on the ground, or None where too much of one ended up hidden, or left out."""
    size = ground.shape[0]
    image = ground.copy()
    owner = np.zeros((size, size), np.uint8)
    classes = np.zeros((size, size), np.uint16)
    tone = ground.sum(axis=0, dtype=np.uint32).sum(axis=0) / size**2  # 13 × as fast as mean
    aspect = math.exp(rng.uniform(-0.3, 0.3))
    layers: list[_Layer] = []
    taken: list[Box] = []
    for layer in _things(rng, art, tone, size, aspect, rules):
        spot = _find_spot(rng, layer, taken, size)
        if spot is None:
            continue
        layers.append(layer)
        height, width = layer.alpha.shape
        taken.append((spot[0], spot[1], spot[0] + width, spot[1] + height))
        _paste(image, owner, classes, layer, spot, len(layers))
    objects: list[SceneObject] = []
    for index, layer in enumerate(layers, start=1):
        shown = owner == index
        solid = int(np.count_nonzero(layer.alpha > 127))
        visible = int(np.count_nonzero(shown)) / max(1, solid)
        if visible < _MIN_VISIBLE or (layer.kind == "word" and visible < 0.95):
            return None
        (x0, x1), (y0, y1) = _extent(shown.any(axis=0)), _extent(shown.any(axis=1))
        mask = shown[y0:y1, x0:x1].copy()  # a view would keep the whole picture's map in memory
        box = (x0, y0, x1, y1)
        objects.append(SceneObject(layer.kind, layer.label, layer.colour_name, box, visible, mask))
    if not objects or (rules.first and all(thing.kind != rules.first for thing in objects)):
        return None
    if rules.reserved and not is_reserved([thing.name for thing in objects]):
        return None
    objects.sort(key=lambda thing: thing.centre)
    return Scene(image, tuple(objects), classes)


def _extent(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the first flag is set, and where the last one, plus 1."""
    return int(flags.argmax()), flags.size - int(flags[::-1].argmax())


def _things(
    rng: np.random.Generator,
    art: Art,
    tone: NDArray[np.float64],
    size: int,
    aspect: float,
    rules: Rules,
) -> Iterator[_Layer]:
    """One to four things, text first since it is the hardest to fit in."""
    count = 1 + int(np.searchsorted((0.32, 0.68, 0.9), rng.random()))
    draw = rng.random()
    text = rules.first or ("word" if draw < 0.3 else "digit" if draw < 0.42 else None)
    names: list[str] = []
    repeat = 0.85 if rng.random() < 0.35 else 0.2  # some scenes are there to be counted
    planned = _reserved_names(rng, art, tone) if rules.reserved else []
    count = max(count, len(planned) + bool(text))
    low, high = ((0.38, 0.66), (0.3, 0.5), (0.26, 0.42), (0.22, 0.36))[count - 1]
    for position in range(count):
        side = size * rng.uniform(low, high)
        if text and position == 0:
            if text == "word":
                yield _word(rng, art, tone, size, aspect, rules.held_out)
            else:
                yield _digit(rng, art, side, aspect)
            continue
        if planned:
            name = planned.pop()
        elif names and rng.random() < repeat:
            name = names[rng.integers(len(names))]
        else:
            name = _name(rng, art, tone)
            while not rules.reserved and is_reserved([*names, name]):
                name = _name(rng, art, tone)
        names.append(name)
        if name in CONCEPTS:
            yield _sticker(rng, art, name, side, aspect)
        else:
            yield _shape(rng, name, side, aspect)


def _name(rng: np.random.Generator, art: Art, tone: NDArray[np.float64]) -> str:
    """A concept, or a coloured shape that stands out from the ground."""
    if rng.random() >= 0.25:
        concepts = tuple(art.stickers)
        return concepts[rng.integers(len(concepts))]
    colours = [c for c, rgb in COLOURS.items() if _contrasts(np.array(rgb), tone)]
    colour = colours[rng.integers(len(colours))]
    return f"{colour} {SHAPES[rng.integers(len(SHAPES))]}"


def _reserved_names(rng: np.random.Generator, art: Art, tone: NDArray[np.float64]) -> list[str]:
    """A coloured shape or a pair of concepts that no training scene holds."""
    shapes = [n for n in RESERVED_SHAPES if _contrasts(np.array(COLOURS[n.split()[0]]), tone)]
    if shapes and rng.random() < 0.5:
        return [shapes[rng.integers(len(shapes))]]
    concepts = tuple(art.stickers)
    while True:
        name = concepts[rng.integers(len(concepts))]
        partners = [other for other in reserved_partners(name) if other in art.stickers]
        if partners:
            return [name, partners[rng.integers(len(partners))]]


def _contrasts(colour: NDArray[np.int64], tone: NDArray[np.float64]) -> bool:
    return float(np.abs(colour - tone).max()) > 90


def _legible(ink: NDArray[np.int64], tone: NDArray[np.float64]) -> bool:
    """Letters need a difference in lightness, not in hue alone (luma weights of Rec. 601)."""
    return abs(float((ink - tone) @ (0.299, 0.587, 0.114))) > 80


def _sticker(rng: np.random.Generator, art: Art, name: str, side: float, aspect: float) -> _Layer:
    drawings = art.stickers[name]
    picture = drawings[rng.integers(len(drawings))]
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _layer("sticker", name, None, _turn(rng, picture, side, aspect), PATCH_CLASS_IDS[name])


def _shape(rng: np.random.Generator, name: str, side: float, aspect: float) -> _Layer:
    colour, shape = name.split()
    jitter = rng.integers(-8, 9, size=3)
    rgb = np.clip(np.array(COLOURS[colour]) + jitter, 0, 255)
    mask = np.asarray(_turn(rng, _shape_mask(shape), side * 0.92, aspect))
    rgba = np.empty((*mask.shape, 4), np.uint8)
    rgba[..., :3] = (rgb * mask[..., None] + 127) // 255
    rgba[..., 3] = mask
    return _layer("shape", shape, colour, rgba, PATCH_CLASS_IDS[name])


def _digit(rng: np.random.Generator, art: Art, side: float, aspect: float) -> _Layer:
    """A handwritten digit: dark ink on a light card."""
    digit = int(rng.integers(10))
    samples = art.digits[digit]
    ink = samples[rng.integers(len(samples))].astype(np.uint16)[..., None]
    paper = rng.integers(225, 256, size=3)
    pen = rng.integers(0, 70, size=3)
    card = np.full((28, 28, 4), 255, np.uint8)
    card[..., :3] = (paper * (255 - ink) + pen * ink) // 255
    picture = _turn(rng, Image.frombytes("RGBa", (28, 28), card.tobytes()), side, aspect, 10)
    return _layer("digit", str(digit), None, picture, PATCH_CLASS_IDS[f"digit {digit}"])


def _word(
    rng: np.random.Generator,
    art: Art,
    tone: NDArray[np.float64],
    size: int,
    aspect: float,
    held_out: bool,
) -> _Layer:
    """A word in one colour that stands out from the ground, slightly turned at most."""
    text = random_text(rng, held_out)
    mask, columns = _text_mask(text, art.fonts[rng.integers(len(art.fonts))])
    natural = mask.width / mask.height / aspect
    tallest = min(0.3 * size, 0.92 * size / natural)
    height = max(_MIN_CAP_HEIGHT * size * 1.05, tallest * rng.uniform(0.7, 1.0))
    width = min(height * natural, 0.92 * size)  # a long word is squeezed rather than shrunk
    shape = (max(1, round(width)), max(1, round(height)))
    angle = rng.uniform(-5, 5) if width < 0.8 * size else rng.uniform(-2, 2)
    mask = _with_margin(mask.resize(shape, Image.Resampling.BICUBIC))
    alpha = np.asarray(mask.rotate(angle, Image.Resampling.BILINEAR, expand=True))
    ids = _with_margin(Image.fromarray(columns[None]).resize(shape, Image.Resampling.NEAREST))
    turned = np.asarray(ids.rotate(angle, Image.Resampling.NEAREST, expand=True))
    plain = rng.random() < 0.5
    inks = [
        rgb
        for name, rgb in COLOURS.items()
        if (name in ("black", "white") or not plain) and _legible(np.array(rgb), tone)
    ]
    rgb = np.array(inks[rng.integers(len(inks))])
    colour = ((rgb * alpha[..., None].astype(np.uint16) + 127) // 255).astype(np.uint8)
    return _Layer("word", text, None, colour, alpha, _CHARACTER_CLASSES[turned])


_CHARACTER_CLASSES = np.array(
    [0, *(PATCH_CLASS_IDS[f"character {character}"] for character in CHARACTERS)], np.uint16
)


def _text_mask(text: str, font: ImageFont.FreeTypeFont) -> tuple[Image.Image, NDArray[np.uint8]]:
    """The text cropped to its ink, and for each of its columns 1 + the character's number."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    columns = np.zeros(right - left, np.uint8)
    for index, character in enumerate(text):
        start = max(0, round(font.getlength(text[:index])) - left)
        columns[start:] = 1 + CHARACTERS.index(character)
    return mask, columns


@lru_cache(maxsize=len(SHAPES))
def _shape_mask(shape: str, side: int = 128) -> Image.Image:
    """The shape's outline filled, cropped to its ink; drawn large and reduced for clean edges."""
    big = 4 * side
    turn = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    if shape == "circle":
        x, y = np.sin(turn), -np.cos(turn)
    elif shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    elif shape == "star":
        corner = np.arange(10) * math.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        x, y = radius * np.sin(corner), -radius * np.cos(corner)
    elif shape == "triangle":
        x, y = np.array([0.0, 1.0, -1.0]), np.array([-0.85, 0.9, 0.9])
    else:
        x, y = np.array([-1.0, 1.0, 1.0, -1.0]), np.array([-1.0, -1.0, 1.0, 1.0])
    points = np.stack([x - x.min(), y - y.min()], axis=1)
    points *= (big - 1) / points.max()
    mask = Image.new("L", (big, big))
    ImageDraw.Draw(mask).polygon([(float(px), float(py)) for px, py in points], fill=255)
    mask = mask.reduce(4)
    return mask.crop(mask.getbbox())


def _turn(
    rng: np.random.Generator, picture: Image.Image, side: float, aspect: float, most: float = 20
) -> Image.Image:
    """The picture turned by up to `most` degrees, squashed, its longer side `side` pixels.

    `aspect` is that of a picture squashed into a square: things get narrower as it grows.
    """
    angle = rng.uniform(-most, most)
    scale = side / max(picture.width / aspect, picture.height)
    width, height = picture.width * scale / aspect, picture.height * scale
    shape = (max(1, round(width)), max(1, round(height)))
    resized = picture.resize(shape, Image.Resampling.BICUBIC)
    return _with_margin(resized).rotate(angle, Image.Resampling.BILINEAR, expand=True)


def _with_margin(picture: Image.Image) -> Image.Image:
    """One empty pixel all around: turning then has something to blend the edges with."""
    padded = Image.new(picture.mode, (picture.width + 2, picture.height + 2))
    padded.paste(picture, (1, 1))
    return padded


def _layer(
    kind: Kind,
    label: str,
    colour_name: str | None,
    picture: Image.Image | NDArray[np.uint8],
    class_id: int,
) -> _Layer:
    rgba = np.asarray(picture)
    alpha = rgba[..., 3]
    classes = np.where(alpha > 127, class_id, 0).astype(np.uint16)
    return _Layer(kind, label, colour_name, rgba[..., :3], alpha, classes)


def _find_spot(
    rng: np.random.Generator, layer: _Layer, taken: list[Box], size: int
) -> tuple[int, int] | None:
    """A place with little overlap, or None after some tries; text overlaps nothing."""
    height, width = layer.alpha.shape
    hidden = 0.0 if layer.kind in ("word", "digit") else 0.06
    low_x, high_x = -hidden * width, size - (1 - hidden) * width
    low_y, high_y = -hidden * height, size - (1 - hidden) * height
    if high_x < low_x or high_y < low_y:
        return None
    for _ in range(24):
        x, y = round(rng.uniform(low_x, high_x)), round(rng.uniform(low_y, high_y))
        x, y = min(x, round(high_x)), min(y, round(high_y))
        if all(_overlap((x, y, x + width, y + height), other) < 0.08 for other in taken):
            return x, y
    return None


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share, as a fraction of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / area


def _paste(
    image: NDArray[np.uint8],
    owner: NDArray[np.uint8],
    classes: NDArray[np.uint16],
    layer: _Layer,
    spot: tuple[int, int],
    index: int,
) -> None:
    """Puts the layer down at `spot` (x, y), in place; what falls outside the frame is lost."""
    size = image.shape[0]
    x, y = spot
    height, width = layer.alpha.shape
    x0, y0, x1, y1 = max(0, x), max(0, y), min(size, x + width), min(size, y + height)
    part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
    region = np.s_[y0:y1, x0:x1]
    alpha = layer.alpha[part]
    rest = 255 - alpha[..., None].astype(np.uint16)
    image[region] = (image[region] * rest + 127) // 255 + layer.colour[part]
    solid = alpha > 127
    owner[region][solid] = index
    named = layer.classes[part]
    covered = named > 0
    classes[region][covered] = named[covered]


def _ground(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A flat, graded or noisy ground: mostly pale, sometimes strong or dark."""
    draw = rng.random()
    if draw < 0.6:
        colour = rng.uniform(185, 256, size=3)
    elif draw < 0.85:
        colour = rng.uniform(60, 235, size=3)
    else:
        colour = rng.uniform(10, 80, size=3)
    style = rng.random()
    if style < 0.4:
        return np.broadcast_to(colour.astype(np.uint8), (size, size, 3)).copy()
    if style < 0.7:
        other = colour + rng.uniform(-45, 45, size=3)
        angle = rng.uniform(0, 2 * math.pi)
        axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        ramp = 0.5 + (axis * math.cos(angle) + axis[:, None] * math.sin(angle)) / 1.42
        field = colour + ramp[..., None] * (other - colour)
        return np.clip(field, 0, 255).astype(np.uint8)
    cells = int(rng.integers(3, 25))
    coarse = np.clip(colour + rng.normal(0, 14, size=(cells, cells, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).copy()
