"""Composing a scene: a ground and what lies on it, with exact ground truth.

Each thing becomes a `Layer` (premultiplied colour, alpha, what it covers, a class for each pixel);
layers are pasted in order, and one byte a pixel keeps which thing is on top. Boxes, masks,
visibility and patch classes all come from that map, so they agree with what is to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from workshop.world.art import Art, Face
from workshop.world.concepts import (
    CHARACTERS,
    COLOURS,
    PATCH_CLASS_IDS,
    PATCH_CLASSES,
    SHADES,
    SHAPES,
)
from workshop.world.documents import Document, draw_page
from workshop.world.drawings import DRAWINGS, draw
from workshop.world.grounds import colour_name, draw_ground, static
from workshop.world.splits import RESERVED_SHAPES, Rules, is_reserved, reserved_partners
from workshop.world.styles import restyle
from workshop.world.words import random_line, random_price, random_text

__all__ = ["Lettering", "Scene", "SceneObject", "compose"]

Kind = Literal["sticker", "drawing", "shape", "word", "digit", "document"]
Box = tuple[int, int, int, int]

_MIN_VISIBLE = 0.4
_MIN_CAP_HEIGHT = 16 / 128  # of the side: below this, letters are too small to be asked for
_MIN_LINE_HEIGHT = 12 / 128  # of several lines, from one to the next
_SIDES = ((0.38, 0.82), (0.3, 0.52), (0.26, 0.44), (0.22, 0.37), (0.19, 0.31), (0.17, 0.28))
_TEXT_PIXELS = 48  # at which text is drawn before it is scaled


@dataclass(frozen=True)
class Lettering:
    """How a text is written: line by line, in which ink, and on a sign of which colour.

    sign: None where it lies on the ground, or where people would not agree on a colour.
    """

    lines: tuple[str, ...]
    ink: str
    sign: str | None


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene.

    kind: a sticker or a plain drawing of a concept, a coloured shape, printed text, a handwritten
    number, a document; label: the concept, the shape, the text itself or the number, the kind of
    document; colour: the one in a shape's name, None of other things;
    box: x0, y0, x1, y1 in pixels around all that is visible of it (x1 and y1 exclusive);
    visible: the fraction of it that neither the frame nor another thing hides;
    mask: the pixels of its box, (y1 − y0)×(x1 − x0), that show it; lettering: of printed text only.
    """

    kind: Kind
    label: str
    colour: str | None
    box: Box
    visible: float
    mask: NDArray[np.bool_] = field(compare=False, repr=False)
    lettering: Lettering | None = None

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

    image: H×W×3; objects: from left to right; classes: H×W, an index into `PATCH_CLASSES`;
    ground: what colour they lie on, if that can be said; document: what is on the page.
    """

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    classes: NDArray[np.uint16]
    ground: str | None = None
    document: Document | None = None

    def mask(self, thing: SceneObject) -> NDArray[np.bool_]:
        """The pixels of the whole picture, H×W, that show one of its things."""
        x0, y0, x1, y1 = thing.box
        whole = np.zeros(self.classes.shape, np.bool_)
        whole[y0:y1, x0:x1] = thing.mask
        return whole

    def patch_labels(self, rows: int = 8, columns: int | None = None) -> NDArray[np.int64]:
        """The class that covers most of each of rows × columns patches, row by row.

        The ground counts only where no thing covers a fifth of the patch, for thin things (a
        bicycle, a key) never cover half of one. The image's side must be a multiple of both.

        columns: as many as rows, unless said.

        Returns:
            rows · columns, indices into `PATCH_CLASSES`.
        """
        columns = columns or rows
        height, width = self.classes.shape[0] // rows, self.classes.shape[1] // columns
        by_patch = self.classes.reshape(rows, height, columns, width).swapaxes(1, 2)
        cells, count = by_patch.reshape(rows * columns, -1), len(PATCH_CLASSES)
        flat = cells + np.arange(len(cells))[:, None] * count
        counts = np.bincount(flat.ravel(), minlength=len(cells) * count).reshape(-1, count)
        counts[:, 0] = height * width // 5
        labels: NDArray[np.int64] = counts.argmax(axis=1).astype(np.int64)
        return labels


@dataclass(frozen=True)
class _Layer:
    """A thing ready to be pasted; all arrays are h×w (×3).

    colour: premultiplied by alpha; solid: what it covers, lines without a filling too;
    classes: what each pixel stands for, 0 for nothing.
    """

    kind: Kind
    label: str
    colour_name: str | None
    colour: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    solid: NDArray[np.bool_]
    classes: NDArray[np.uint16]
    lettering: Lettering | None = None


def compose(
    rng: np.random.Generator, art: Art, size: int, rules: Rules, only: str | None = None
) -> Scene:
    """A random scene of size×size pixels.

    Args:
        rng: where every choice comes from.
        art: what there is to place.
        size: side in pixels.
        rules: the split's, which may keep words and combinations of things from it.
        only: a concept that is to be alone in it, as a sticker.
    """
    if only is not None:
        while True:
            scene = _place(rng, art, *draw_ground(rng, size), False, rules, only)
            if scene is not None:
                return scene
    draw = rng.random()
    documents = 0.09 if rules.held_out else 0.22  # where a fact stands takes long to learn
    if rules.first == "document" or (rules.first is None and rules.mixed and draw < documents):
        return _document_scene(rng, art, size, rules)
    if rules.mixed and rules.first is None and draw > (0.5 if rules.unknown else 0.955):
        return _empty_scene(rng, size)
    while True:
        plain = rules.first == "drawing" or (rules.mixed and rng.random() < 0.12)
        scene = _place(rng, art, *draw_ground(rng, size, plain), plain, rules)
        if scene is not None:
            return scene


def _empty_scene(rng: np.random.Generator, size: int) -> Scene:
    """A ground and nothing on it, or noise."""
    nothing = np.zeros((size, size), np.uint16)
    if rng.random() < 0.4:
        return Scene(static(rng, size), (), nothing)
    image, colour = draw_ground(rng, size, rng.random() < 0.3)
    return Scene(image, (), nothing, colour)


def _document_scene(rng: np.random.Generator, art: Art, size: int, rules: Rules) -> Scene:
    """A page that fills most of the picture."""
    image, colour = draw_ground(rng, size)
    page = draw_page(rng, _face(rng, art), size, rules.held_out)
    height, width = page.picture.shape[:2]
    x, y = (int(rng.integers(size - side + 1)) for side in (width, height))
    image[y : y + height, x : x + width] = page.picture
    classes = np.zeros((size, size), np.uint16)
    classes[y : y + height, x : x + width] = _CHARACTER_CLASSES[page.characters]
    box, mask = (x, y, x + width, y + height), np.ones((height, width), np.bool_)
    thing = SceneObject("document", page.document.kind, None, box, 1.0, mask)
    return Scene(image, (thing,), classes, colour, page.document)


def _place(
    rng: np.random.Generator,
    art: Art,
    ground: NDArray[np.uint8],
    colour: str | None,
    plain: bool,
    rules: Rules,
    only: str | None = None,
) -> Scene | None:
    """Things placed on the ground, or None where too much of one ended up hidden, or left out."""
    size = ground.shape[0]
    image = ground.copy()
    owner = np.zeros((size, size), np.uint8)
    classes = np.zeros((size, size), np.uint16)
    tone = ground.sum(axis=0, dtype=np.uint32).sum(axis=0) / size**2  # 13 × as fast as mean
    busy = bool(ground[::4, ::4].astype(np.float32).mean(axis=2).std() > 16)
    aspect = math.exp(rng.uniform(-0.3, 0.3))
    layers: list[_Layer] = []
    taken: list[Box] = []
    things = _things(rng, art, tone, busy, size, aspect, plain, rules)
    if only is not None:
        things = iter([_sticker(rng, art, only, size * rng.uniform(*_SIDES[0]), aspect, rules)])
    for layer in things:
        spot = _find_spot(rng, layer, taken, size)
        if spot is None or not _shows(layer, image, spot):
            continue
        layers.append(layer)
        height, width = layer.alpha.shape
        taken.append((spot[0], spot[1], spot[0] + width, spot[1] + height))
        if rules.restyled and rng.random() < 0.08:
            _shade(rng, image, layer, spot)
        _paste(image, owner, classes, layer, spot, len(layers))
    objects: list[SceneObject] = []
    for index, layer in enumerate(layers, start=1):
        shown = owner == index
        visible = int(np.count_nonzero(shown)) / max(1, int(np.count_nonzero(layer.solid)))
        if visible < _MIN_VISIBLE or (layer.kind == "word" and visible < 0.95):
            return None
        (x0, x1), (y0, y1) = _extent(shown.any(axis=0)), _extent(shown.any(axis=1))
        mask = shown[y0:y1, x0:x1].copy()  # a view would keep the whole picture's map in memory
        box = (x0, y0, x1, y1)
        objects.append(
            SceneObject(
                layer.kind, layer.label, layer.colour_name, box, visible, mask, layer.lettering
            )
        )
    wanted = {"lines": "word"}.get(rules.first or "", rules.first)
    if not objects or (wanted and all(thing.kind != wanted for thing in objects)):
        return None
    nameable = [t.name for t in objects if t.kind in ("sticker", "drawing", "shape")]
    if rules.reserved and not is_reserved(nameable):
        return None
    objects.sort(key=lambda thing: thing.centre)
    return Scene(image, tuple(objects), classes, colour)


def _shows(layer: _Layer, image: NDArray[np.uint8], spot: tuple[int, int]) -> bool:
    """Whether enough of a thing differs from what it would lie on: not ink on a dark ground."""
    x, y = (max(0, place) for place in spot)
    height, width = layer.alpha.shape
    under = image[y : y + height : 2, x : x + width : 2].reshape(-1, 3).mean(axis=0)
    alpha = layer.alpha[::2, ::2]
    painted = alpha > 127
    if not painted.any():
        return False
    apart = np.abs(layer.colour[::2, ::2][painted].astype(np.float32) - under).max(axis=1)
    return bool((apart > 60).mean() > 0.3)


def _extent(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the first flag is set, and where the last one, plus 1."""
    return int(flags.argmax()), flags.size - int(flags[::-1].argmax())


def _texts(rng: np.random.Generator, rules: Rules) -> list[str]:
    """What is written in a scene, if anything."""
    if rules.first in ("word", "lines", "digit"):
        return [rules.first]
    draw = rng.random()
    # Reading takes longer to learn than all else: training has more of it than the tests.
    word, lines, digit = (0.17, 0.3, 0.42) if rules.held_out else (0.24, 0.46, 0.55)
    if rules.first == "drawing" or draw > digit:
        return []
    if not rules.mixed:  # as much as there is for one place
        return ["word"] if draw < lines else ["digit"]
    if draw < word:
        return ["word"] if rng.random() < 0.8 else ["word", "word"]
    return ["lines"] if draw < lines else ["digit"]


def _things(
    rng: np.random.Generator,
    art: Art,
    tone: NDArray[np.float64],
    busy: bool,
    size: int,
    aspect: float,
    plain: bool,
    rules: Rules,
) -> Iterator[_Layer]:
    """One to six things, text first since it is the hardest to fit in."""
    count = 1 + int(np.searchsorted((0.3, 0.62, 0.82, 0.93, 0.975), rng.random()))
    texts = _texts(rng, rules)
    named: list[tuple[str, Kind]] = []
    repeat = 0.85 if rng.random() < 0.35 else 0.2  # some scenes are there to be counted
    planned = _reserved_names(rng, art, tone) if rules.reserved else []
    if texts == ["lines"]:
        count = min(count, 2)
    count = max(count, len(planned) + len(texts))
    low, high = _SIDES[count - 1]
    for text in texts:
        if text == "digit":
            yield _number(rng, art, size * rng.uniform(low, high), aspect, rules)
        elif text == "lines":
            yield _lines(rng, art, tone, busy, size, rules.held_out)
        else:
            yield _word(rng, art, tone, busy, size, aspect, rules.held_out)
    for _ in range(count - len(texts)):
        side = size * rng.uniform(low, high)
        if planned:
            name = planned.pop()
            kind: Kind = "sticker" if name in art.stickers else "shape"
        elif named and rng.random() < repeat:
            name, kind = named[rng.integers(len(named))]
        else:
            names = [other for other, _ in named]
            name, kind = _name(rng, art, tone, plain, rules)
            while not rules.reserved and is_reserved([*names, name]):
                name, kind = _name(rng, art, tone, plain, rules)
        named.append((name, kind))
        if kind == "sticker":
            yield _sticker(rng, art, name, side, aspect, rules)
        elif kind == "drawing":
            yield _drawing(rng, name, side, rules)
        else:
            yield _shape(rng, name, side, aspect, rules)


_DRAWN = tuple(DRAWINGS)


def _name(
    rng: np.random.Generator, art: Art, tone: NDArray[np.float64], plain: bool, rules: Rules
) -> tuple[str, Kind]:
    """A concept, drawn by a vendor or by us, or a coloured shape unlike the ground."""
    draw = rng.random()
    drawn = (0.9 if plain else 0.1) if rules.drawn else 0.0
    if rules.first == "drawing":
        drawn = 1.0
    if draw < drawn:
        return _DRAWN[rng.integers(len(_DRAWN))], "drawing"
    if draw < drawn + 0.8 * (1 - drawn):
        concepts = tuple(art.stickers)
        return concepts[rng.integers(len(concepts))], "sticker"
    colours = [c for c, rgb in COLOURS.items() if _contrasts(np.array(rgb), tone)]
    colour = colours[rng.integers(len(colours))]
    shapes = len(SHAPES) if rules.drawn else 5  # the others are in some splits alone
    return f"{colour} {SHAPES[rng.integers(shapes)]}", "shape"


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


def _sticker(
    rng: np.random.Generator, art: Art, name: str, side: float, aspect: float, rules: Rules
) -> _Layer:
    drawings = art.stickers[name]
    picture = drawings[int(rng.integers(len(drawings)))]
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rgba = np.asarray(_turn(rng, picture, side, aspect))
    if rules.restyled and rng.random() < 0.4:
        rgba = restyle(rgba, rng)
    return _layer("sticker", name, None, rgba, PATCH_CLASS_IDS[name])


def _drawing(rng: np.random.Generator, name: str, side: float, rules: Rules) -> _Layer:
    """A plain drawing, its lines as sharp as they are drawn or softened, hardly turned."""
    held_out = rules.first == "drawing"
    soft = rng.random() < 0.6
    pixels = round(min(160, side * (2 if soft else 1)) / 0.9)
    picture, whole = draw(name, rng, max(16, pixels), held_out)
    if rng.random() < 0.5:
        mirror = Image.Transpose.FLIP_LEFT_RIGHT
        picture, whole = picture.transpose(mirror), whole.transpose(mirror)
    angle = rng.uniform(-9, 9) if soft and rng.random() < 0.5 else 0.0
    if soft:
        scale = side / max(picture.size)
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
        whole = whole.resize(shape, Image.Resampling.BICUBIC)
    if angle:
        picture = _with_margin(picture).rotate(angle, Image.Resampling.BILINEAR, expand=True)
        whole = _with_margin(whole).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    rgba, solid = np.asarray(picture), np.asarray(whole) > 127
    classes = np.where(solid, PATCH_CLASS_IDS[name], 0).astype(np.uint16)
    return _Layer("drawing", name, None, rgba[..., :3], rgba[..., 3], solid, classes)


_SQUARED = ("circle", "square", "rectangle", "oval", "diamond")  # a squashed one is another shape


def _shape(rng: np.random.Generator, name: str, side: float, aspect: float, rules: Rules) -> _Layer:
    colour, shape = name.split()
    middle = np.array(COLOURS[colour])
    if not rules.held_out and rng.random() < 0.6:  # somewhere between it and another of its name
        other = SHADES[colour][rng.integers(len(SHADES[colour]))]
        middle = middle + (np.array(other) - middle) * rng.uniform()
    jitter = rng.integers(-8, 9, size=3)
    rgb = np.clip(middle + jitter, 0, 255).astype(int)
    stretch = math.exp(rng.uniform(-0.05, 0.05)) if shape in _SQUARED else aspect
    if shape in ("rectangle", "oval"):
        stretch = math.exp(rng.uniform(0.4, 0.8) * rng.choice((-1, 1)))
    most = 45 if shape in ("circle", "oval", "arrow") else 12 if shape == "diamond" else 20
    mask = np.asarray(_turn(rng, _shape_mask(shape), side * 0.92, stretch, most))
    if rng.random() < 0.15:  # an outline; its inside belongs to it
        inner = np.asarray(_shrunk(Image.fromarray(mask), max(2, round(side * 0.08))))
        paint = mask - np.minimum(inner, mask)
    else:
        paint = mask
    colours = ((rgb * paint[..., None].astype(np.uint16) + 127) // 255).astype(np.uint8)
    solid = mask > 127
    classes = np.where(solid, PATCH_CLASS_IDS[name], 0).astype(np.uint16)
    return _Layer("shape", shape, colour, colours, paint, solid, classes)


def _shrunk(mask: Image.Image, width: int) -> Image.Image:
    """A mask without its rim."""
    return mask.filter(ImageFilter.MinFilter(2 * (width // 2) + 1))


def _number(rng: np.random.Generator, art: Art, side: float, aspect: float, rules: Rules) -> _Layer:
    """Handwritten digits, one or several in a row: dark ink on a light card, or on the ground."""
    count = 1
    if rules.mixed and rules.first is None and rng.random() < 0.35:
        count = int(rng.integers(2, 5))
    digits = [int(digit) for digit in rng.integers(10, size=count)]
    rows = [art.digits[digit] for digit in digits]
    ink = np.concatenate([row[rng.integers(len(row))] for row in rows], axis=1)
    if count > 1:  # written digits stand closer than their pictures
        ink = np.concatenate([ink[:, 28 * i + 4 : 28 * i + 24] for i in range(count)], axis=1)
        ink = np.pad(ink, ((0, 0), (4, 4)))
    width = ink.shape[1]
    share = ink.astype(np.uint16)[..., None]
    paper = rng.integers(225, 256, size=3)
    pen = rng.integers(0, 70, size=3)
    if rules.restyled and rng.random() < 0.25:
        paper, pen = pen, paper
    card = np.full((28, width, 4), 255, np.uint8)
    card[..., :3] = (paper * (255 - share) + pen * share) // 255
    long = min(side * (1 + 0.45 * (count - 1)), side / 0.4)
    picture = _turn(rng, Image.frombytes("RGBa", (width, 28), card.tobytes()), long, aspect, 10)
    layer = _layer("digit", "".join(map(str, digits)), None, np.asarray(picture), 1)
    ids = np.array([PATCH_CLASS_IDS[f"digit {digit}"] for digit in digits], np.uint16)
    columns = np.arange(layer.solid.shape[1]) * count // layer.solid.shape[1]
    classes = np.where(layer.solid, ids[columns], 0).astype(np.uint16)
    return _Layer("digit", layer.label, None, layer.colour, layer.alpha, layer.solid, classes)


def _face(rng: np.random.Generator, art: Art) -> Face:
    return art.fonts[rng.integers(len(art.fonts))]


def _word(
    rng: np.random.Generator,
    art: Art,
    tone: NDArray[np.float64],
    busy: bool,
    size: int,
    aspect: float,
    held_out: bool,
) -> _Layer:
    """A word in one colour that stands out from what it lies on, slightly turned at most."""
    text = random_text(rng, held_out)
    mask, ids = _text_mask([text], _face(rng, art), 1.0)
    natural = mask.width / mask.height / aspect
    tallest = min(0.3 * size, 0.92 * size / natural)
    height = max(_MIN_CAP_HEIGHT * size * 1.05, tallest * rng.uniform(0.7, 1.0))
    width = min(height * natural, 0.92 * size)  # a long word is squeezed rather than shrunk
    return _text_layer(rng, [text], mask, ids, (width, height), tone, busy, size)


def _lines(
    rng: np.random.Generator,
    art: Art,
    tone: NDArray[np.float64],
    busy: bool,
    size: int,
    held_out: bool,
) -> _Layer:
    """One to four short lines, or a price."""
    face = _face(rng, art)
    while True:
        draw = rng.random()
        if draw < 0.22:
            lines = [random_price(rng)]
            if rng.random() < 0.4:
                lines.insert(0, random_line(rng, held_out, 1))
        else:
            rows = 1 + int(np.searchsorted((0.3, 0.7, 0.9), rng.random()))
            lines = [random_line(rng, held_out, 1 + int(rng.integers(3))) for _ in range(rows)]
        pitch = rng.uniform(1.05, 1.35)
        mask, ids = _text_mask(lines, face, pitch)
        share = mask.height / (len(lines) * _TEXT_PIXELS)
        tallest = 0.92 * size / mask.width * mask.height
        height = min(tallest, 0.24 * size * share * len(lines), 0.8 * size)
        height *= rng.uniform(0.8, 1.0)
        least = _MIN_LINE_HEIGHT * size * len(lines) * share
        if height < least <= 1.3 * tallest:
            height = least  # squeezed rather than shrunk
        width = min(height * mask.width / mask.height, 0.93 * size)
        if height >= least:
            return _text_layer(rng, lines, mask, ids, (width, height), tone, busy, size)


def _text_layer(
    rng: np.random.Generator,
    lines: list[str],
    mask: Image.Image,
    ids: Image.Image,
    shape: tuple[float, float],
    tone: NDArray[np.float64],
    busy: bool,
    size: int,
) -> _Layer:
    """Lines of text scaled to width × height, slightly turned at most.

    At times on a sign of its own, and mostly so where the ground is busy.
    """
    width, height = (max(1, round(side)) for side in shape)
    most = 5 if width < 0.7 * size and height < 0.5 * size else 2 if width < 0.85 * size else 0
    angle = rng.uniform(-most, most) if rng.random() < 0.7 else 0.0
    mask = _with_margin(mask.resize((width, height), Image.Resampling.BICUBIC))
    ids = _with_margin(ids.resize((width, height), Image.Resampling.NEAREST))
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        ids = ids.rotate(angle, Image.Resampling.NEAREST, expand=True)
    alpha = np.asarray(mask)
    sign = rng.random() < (0.9 if busy else 0.25)
    if sign:
        pad = max(2, round(0.12 * min(alpha.shape)))
        pads = ((pad, pad), (pad, pad))
        alpha, turned = np.pad(alpha, pads), np.pad(np.asarray(ids), pads)
        tone = rng.uniform(0, 256, 3) if rng.random() < 0.7 else np.full(3, 255.0)
    else:
        turned = np.asarray(ids)
    plain = rng.random() < 0.5
    inks = [
        name
        for name, rgb in COLOURS.items()
        if (name in ("black", "white") or not plain) and _legible(np.array(rgb), tone)
    ]
    name = inks[rng.integers(len(inks))]
    share = alpha[..., None].astype(np.uint16)
    paint = np.array(COLOURS[name]) * share
    if sign:
        paint = paint + tone.astype(np.uint16) * (255 - share)
        alpha = np.full_like(alpha, 255)
    return _Layer(
        "word",
        " ".join(lines),
        None,
        ((paint + 127) // 255).astype(np.uint8),
        alpha,
        alpha > 127,
        _CHARACTER_CLASSES[turned],
        Lettering(tuple(lines), name, colour_name(tone) if sign else None),
    )


_CHARACTER_CLASSES = np.array(
    [0, *(PATCH_CLASS_IDS[f"character {character}"] for character in CHARACTERS)], np.uint16
)


def _text_mask(lines: list[str], face: Face, pitch: float) -> tuple[Image.Image, Image.Image]:
    """Lines of text cropped to their ink, and for each pixel 1 + its character's number.

    pitch: from line to line, as a share of the type's size.
    """
    font = face.at(_TEXT_PIXELS)
    boxes = [font.getbbox(line) for line in lines]
    left, right = min(box[0] for box in boxes), max(box[2] for box in boxes)
    step = pitch * _TEXT_PIXELS
    top, bottom = boxes[0][1], step * (len(lines) - 1) + boxes[-1][3]
    size = (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top)))
    mask = Image.new("L", size)
    ids = np.zeros(size[::-1], np.uint8)
    onto = ImageDraw.Draw(mask)
    for row, line in enumerate(lines):
        y = step * row - top
        onto.text((-left, y), line, fill=255, font=font)
        rows = slice(max(0, round(y + boxes[row][1])), round(y + boxes[row][3]))
        edges = [max(0, round(edge - left)) for edge in face.edges(line, _TEXT_PIXELS)]
        for character, start, end in zip(line, edges, edges[1:], strict=False):
            if character != " ":
                ids[rows, start:end] = 1 + CHARACTERS.index(character)
    return mask, Image.fromarray(ids)


@lru_cache(maxsize=len(SHAPES))
def _shape_mask(shape: str, side: int = 128) -> Image.Image:
    """The shape's outline filled, cropped to its ink; drawn large and reduced for clean edges."""
    big = 4 * side
    turn = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    corners = {"triangle": 3, "pentagon": 5, "hexagon": 6}
    if shape in ("circle", "oval"):
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
    elif shape in corners:
        corner = np.arange(corners[shape]) * 2 * math.pi / corners[shape]
        x, y = np.sin(corner), -np.cos(corner)
    elif shape == "diamond":
        x, y = np.array([0.0, 0.75, 0.0, -0.75]), np.array([-1.0, 0.0, 1.0, 0.0])
    elif shape == "cross":
        x = np.array([-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1]) / 3
        y = np.array([-3, -3, -1, -1, 1, 1, 3, 3, 1, 1, -1, -1]) / 3
    elif shape == "arrow":
        x = np.array([-1.0, 0.1, 0.1, 1.0, 0.1, 0.1, -1.0])
        y = np.array([-0.25, -0.25, -0.7, 0.0, 0.7, 0.25, 0.25])
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
    kind: Kind, label: str, colour_name: str | None, rgba: NDArray[np.uint8], class_id: int
) -> _Layer:
    alpha = rgba[..., 3]
    solid = alpha > 127
    classes = np.where(solid, class_id, 0).astype(np.uint16)
    return _Layer(kind, label, colour_name, rgba[..., :3], alpha, solid, classes)


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


def _shade(
    rng: np.random.Generator, image: NDArray[np.uint8], layer: _Layer, spot: tuple[int, int]
) -> None:
    """A soft shadow beside where the layer will lie, in place."""
    size = image.shape[0]
    shift = (int(v) for v in rng.integers(1, max(2, size // 20), 2))
    x, y = (place + move for place, move in zip(spot, shift, strict=True))
    whole = Image.new("L", (size, size))
    whole.paste(Image.fromarray(layer.alpha), (x, y))
    soft = np.asarray(whole.filter(ImageFilter.BoxBlur(size / 60)), np.uint16)[..., None]
    dark = int(rng.integers(60, 150))
    image[:] = (image * (255 - soft * dark // 255) // 255).astype(np.uint8)


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
    rest = 255 - layer.alpha[part][..., None].astype(np.uint16)
    image[region] = (image[region] * rest + 127) // 255 + layer.colour[part]
    solid = layer.solid[part]
    owner[region][solid] = index
    named = layer.classes[part]
    covered = named > 0
    classes[region][covered] = named[covered]
