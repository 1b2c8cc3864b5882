"""Boxes, masks and labels drawn onto a picture, to be read on any ground."""

from __future__ import annotations

import colorsys
import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from paliglass.errors import PaliglassError

__all__ = ["PALETTE", "draw_objects", "label_colours"]

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]
Edges = tuple[int, int, int, int]

SMALLEST = 10
"""Letters below this many pixels cannot be read."""

# Twelve hues that people tell apart, then the same darker and paler: what forty labels need.
_HUES = (0.58, 0.0, 0.35, 0.09, 0.80, 0.50, 0.92, 0.15, 0.70, 0.26, 0.64, 0.43)
_TONES = ((0.82, 0.88), (0.95, 0.58), (0.48, 0.98))  # saturation, brightness
PALETTE: tuple[Colour, ...] = tuple(
    (round(red * 255), round(green * 255), round(blue * 255))
    for saturation, brightness in _TONES
    for hue in _HUES
    for red, green, blue in [colorsys.hsv_to_rgb(hue, saturation, brightness)]
)

# Fonts for what Pillow's own lacks, looked up by name in the system's folders.
_FONTS = """
NotoSans-Regular.ttf DejaVuSans.ttf NotoSansCJK-Regular.ttc NotoSansCJKsc-Regular.otf
DroidSansFallbackFull.ttf wqy-microhei.ttc wqy-zenhei.ttc SourceHanSans.ttc
NotoSansArabic-Regular.ttf NotoSansHebrew-Regular.ttf NotoSansDevanagari-Regular.ttf
NotoSansThai-Regular.ttf FreeSans.ttf PingFang.ttc Hiragino|Sans|GB.ttc AppleSDGothicNeo.ttc
Arial|Unicode.ttf segoeui.ttf msyh.ttc YuGothM.ttc malgun.ttf Nirmala.ttf LeelawUI.ttf
""".split()


def label_colours(labels: Iterable[str]) -> dict[str, Colour]:
    """A strong colour for each label, different ones as long as the palette of 36 lasts.

    A label has the same colour in every picture, unless another in this one has it already.
    """
    colours: dict[str, Colour] = {}
    for label in sorted(set(labels)):
        place = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big") % len(_HUES)
        places = [(place + step) % len(PALETTE) for step in range(len(PALETTE))]
        free = (PALETTE[p] for p in places if PALETTE[p] not in colours.values())
        colours[label] = next(free, PALETTE[place])
    return colours


class _Object(NamedTuple):
    """What is drawn: a name and, where it is told, a score; x0, y0, x1, y1 in pixels; a mask."""

    label: str
    box: Box
    mask: Mask | None
    score: float | None


def draw_objects(
    picture: Image.Image,
    labels: Sequence[str],
    boxes: Sequence[Box],
    masks: Sequence[Mask | None] | None = None,
    scores: Sequence[float] | None = None,
    scale: int = 1,
) -> Image.Image:
    """A copy of an upright picture with a frame, a tag and, where there is one, a mask for each.

    Frames have a dark rim, so that they show on any ground; masks are tinted and outlined. Lines
    and letters grow with the picture. Tags keep clear of each other where there is room, and are
    left out where a picture is too small for letters; `scale` enlarges it first.

    Args:
        labels, boxes: of N objects; x0, y0, x1, y1 in pixels of the picture.
        masks: H × W of the picture, or None for an object without one.
        scores: what the tags tell behind the labels; None for nothing.

    Raises PaliglassError for a scale that is no whole number of 1 or more.
    """
    if not isinstance(scale, Integral) or scale < 1:
        raise PaliglassError(f"scale is {scale!r}; it must be a whole number, 1 or more")
    none = [None] * len(labels)
    found = list(map(_Object, labels, boxes, masks or none, scores or none))
    drawn = picture.convert("RGB")
    if scale > 1:
        drawn = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.LANCZOS)
    colours = label_colours(labels)
    line = max(1, round(min(drawn.size) / 220))
    # The large first, so that a small one is not buried.
    by_size = sorted(found, key=lambda item: -_area(item.box))
    for item in by_size:
        if item.mask is not None:
            drawn = _tint(drawn, item.mask, colours[item.label], line)
    draw = ImageDraw.Draw(drawn, "RGBA")
    for item in by_size:
        edges = _frame(item.box, scale, drawn.size)
        quiet = item.mask is not None  # there the mask's outline speaks
        rim = max(1, line // 3)
        _rectangle(draw, edges, line + 2 * rim, (0, 0, 0, 70 if quiet else 150), grow=rim)
        _rectangle(draw, edges, max(1, line // 2) if quiet else line, (*colours[item.label], 255))
    _draw_tags(drawn, draw, found, colours, scale, line)
    return drawn


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _frame(box: Box, scale: int, size: tuple[int, int]) -> Edges:
    """A box in pixels of the enlarged picture, its edges kept inside."""
    ends = [
        min(max(round(edge * scale), 0), side - 1) for edge, side in zip(box, size * 2, strict=True)
    ]
    return ends[0], ends[1], max(ends[0], ends[2]), max(ends[1], ends[3])


def _rectangle(
    draw: ImageDraw.ImageDraw, edges: Edges, line: int, colour: tuple[int, ...], grow: int = 0
) -> None:
    x0, y0, x1, y1 = edges
    draw.rectangle((x0 - grow, y0 - grow, x1 + grow, y1 + grow), outline=colour, width=line)


def _tint(image: Image.Image, mask: NDArray[np.bool_], colour: Colour, line: int) -> Image.Image:
    """Lays a colour over the mask, and an outline with a dark rim around it."""
    whole = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if whole.size != image.size:  # enlarged; smoothly, so that its edge has no steps
        whole = whole.resize(image.size, Image.Resampling.BICUBIC).point(lambda v: 255 * (v > 127))
    bounds = whole.getbbox()
    if bounds is None:
        return image
    reach = 2 * line + 1
    x0, y0, x1, y1 = bounds
    area = x0 - reach, y0 - reach, x1 + reach, y1 + reach
    part = image.crop(area)
    inside = np.asarray(whole.crop(area)) > 0
    counts = _window_counts(inside, line)
    rim = (counts > 0) & ~inside
    edge = inside & (counts < (2 * line + 1) ** 2)
    for where, fill, opacity in ((rim, (0, 0, 0), 150), (inside, colour, 100), (edge, colour, 255)):
        part.paste(fill, mask=Image.fromarray(where.astype(np.uint8) * np.uint8(opacity)))
    image.paste(part, area[:2])
    return image


def _window_counts(mask: NDArray[np.bool_], reach: int) -> NDArray[np.int64]:
    """How many pixels are True within `reach` rows and columns of each, by a summed-area table."""
    side = 2 * reach + 1
    table = np.pad(np.pad(mask, reach).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts: NDArray[np.int64] = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return counts


@dataclass(frozen=True)
class _Tag:
    """A name tag before it has a place: text, its box's edges, its own width and height."""

    text: str
    edges: Edges
    colour: Colour
    width: int
    height: int


def _draw_tags(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    found: Sequence[_Object],
    colours: dict[str, Colour],
    scale: int,
    line: int,
) -> None:
    side = min(image.size)
    if side < 3 * SMALLEST:
        return
    size = max(SMALLEST + 1, round(side / 26))
    tags = _tags(found, colours, scale, image.size, size)
    # Where tags would fill the picture, they are made smaller.
    while sum(t.width * t.height for t in tags) > 0.25 * image.width * image.height:
        if size == SMALLEST:
            break
        size = max(SMALLEST, round(size * 0.85))
        tags = _tags(found, colours, scale, image.size, size)
    frames = np.array([tag.edges for tag in tags], dtype=float).reshape(-1, 4)
    taken = np.zeros((0, 4))
    places = {}
    # Small boxes first: they have the fewest places that clearly belong to them.
    for i in sorted(range(len(tags)), key=lambda i: _area(tags[i].edges)):
        place = _place(tags[i], i, frames, taken, image.size, line)
        taken = np.vstack((taken, place))
        places[i] = place
    for i, tag in enumerate(tags):
        _draw_leader(draw, places[i], tag, line)
    for i, tag in enumerate(tags):
        x0, y0, x1, y1 = (round(edge) for edge in places[i])
        radius = tag.height // 5
        draw.rounded_rectangle(
            (x0, y0, x1 - 1, y1 - 1), radius, fill=(*tag.colour, 235), outline=(0, 0, 0, 110)
        )
        ink = "black" if _luminance(tag.colour) > 0.36 else "white"
        font = _font_for(tag.text, size)
        draw.text(((x0 + x1) / 2, (y0 + y1) / 2), tag.text, fill=ink, font=font, anchor="mm")


def _tags(
    found: Sequence[_Object],
    colours: dict[str, Colour],
    scale: int,
    picture: tuple[int, int],
    size: int,
) -> list[_Tag]:
    tags = []
    for item in found:
        label = _drawable(item.label, size)
        text = label if item.score is None else f"{label} {item.score:.2f}".strip()
        room = picture[0] - size
        while label and _length(text, size) > room:
            label = label[:-1].rstrip()
            text = f"{label}…" if label else ""
        if not text:
            continue
        width, height = round(_length(text, size) + 0.7 * size), round(1.4 * size)
        edges = _frame(item.box, scale, picture)
        tags.append(_Tag(text, edges, colours[item.label], width, height))
    return tags


def _place(
    tag: _Tag,
    own: int,
    frames: NDArray[np.float64],
    taken: NDArray[np.float64],
    picture: tuple[int, int],
    line: int,
) -> NDArray[np.float64]:
    """Where a tag covers the least of other tags and other things, and is closest to its box."""
    (x0, y0, x1, y1), width, height = tag.edges, tag.width, tag.height
    over, under = y0 - height - line, y1 + 1 + line
    inner = x0 + line, y0 + line, x1 - line - width, y1 - line - height
    near = [(x0 - line, over), (x1 + line - width, over), (x0 - line, under)]
    near += [(x1 + line - width, under), (inner[0], inner[1]), (inner[2], inner[1])]
    near += [(inner[0], inner[3]), (inner[2], inner[3])]
    near += [(x1 + 2 * line, y0), (x0 - 2 * line - width, y0)]
    rows = np.arange(0, max(picture[1] - height, 0) + 1, max(height // 2, 1))
    columns = np.arange(0, max(picture[0] - width, 0) + 1, max(width // 4, height // 2, 1))
    if len(rows) * len(columns) > 4000:  # on a large picture, those around the box will do
        rows = rows[np.abs(rows - y0).argsort()[:64]]
        columns = columns[np.abs(columns - x0).argsort()[:64]]
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    corners = np.vstack((np.array(near, dtype=float), grid))
    corners = corners.clip(0, np.maximum(np.array(picture) - (width, height), 0))
    places = np.hstack((corners, corners + np.array((width, height))))
    area = width * height
    covered = _overlaps(places, taken).sum(axis=1) / area
    others = np.delete(frames, own, axis=0) if len(frames) > 1 else frames[:0]
    sizes = ((others[:, 2:] - others[:, :2]).prod(axis=1)).clip(1)
    hidden = (_overlaps(places, others) / np.minimum(sizes, area)).sum(axis=1)
    middle = corners + np.array((width / 2, height / 2))
    apart = np.maximum(np.maximum((x0, y0) - middle, middle - (x1, y1)), 0).sum(axis=1) / height
    order = np.concatenate((np.arange(len(near)) * 0.08, np.full(len(grid), 1.2)))
    cost = 12 * covered + 2.0 * (covered > 0) + 0.5 * hidden + 0.5 * apart + order
    place: NDArray[np.float64] = places[cost.argmin()]
    return place


def _overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas that rectangles share: N × 4 and M × 4 → N × M."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared: NDArray[np.float64] = (high - low).clip(0).prod(axis=-1)
    return shared


def _draw_leader(
    draw: ImageDraw.ImageDraw, place: NDArray[np.float64], tag: _Tag, line: int
) -> None:
    """A line from a tag to its box, where they do not touch."""
    ends = []
    for axis in (0, 1):
        low, high, first, last = place[axis], place[axis + 2], tag.edges[axis], tag.edges[axis + 2]
        at = (max(low, first) + min(high, last)) / 2 if low <= last and first <= high else None
        if at is not None:
            ends.append((at, at))
        else:
            ends.append((high, first) if high < first else (low, last))
    (xa, xb), (ya, yb) = ends
    if max(abs(xa - xb), abs(ya - yb)) > 3 * line + 1:
        draw.line((xa, ya, xb, yb), fill=(0, 0, 0, 150), width=line + 2)
        draw.line((xa, ya, xb, yb), fill=(*tag.colour, 255), width=line)


def _luminance(colour: Colour) -> float:
    """WCAG's relative luminance, in [0, 1]."""
    red, green, blue = ((value / 255) ** 2.2 for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _length(text: str, size: int) -> float:
    return _font_for(text, size).getlength(text)


def _drawable(label: str, size: int) -> str:
    """A label on one line; what no font here has loses its accents, or becomes a dot."""
    text = unicodedata.normalize("NFC", label)
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    text = " ".join(text.split())
    font = _font_for(text, size)
    plain = (c if _has(font, c) else unicodedata.normalize("NFKD", c)[0] for c in text)
    return "".join(c if _has(font, c) else "·" for c in plain)


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The first font that has all of a text, else the one that has the most of it."""
    letters = tuple(dict.fromkeys(text))
    best = _font(None, size)
    fewest = sum(not _has(best, c) for c in letters)
    for name in _FONTS if fewest else ():
        font = _font(name, size)
        missing = len(letters) if font is None else sum(not _has(font, c) for c in letters)
        if font is not None and missing < fewest:
            best, fewest = font, missing
        if not fewest:
            break
    assert best is not None
    return best


@lru_cache(maxsize=256)
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system by file name, None where there is none; without a name, Pillow's own."""
    if name is None:
        return ImageFont.load_default(size)  # type: ignore[return-value]
    try:
        return ImageFont.truetype(name.replace("|", " "), size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font has a shape of its own for a letter, and not the box of those it lacks."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
