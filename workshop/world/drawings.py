"""Things drawn from plain primitives: a house of a square and a triangle, a face of three circles.

Each is a function that says what to draw with a `Pen`, in a square of side 1 whose y points down.
What varies (proportions, which of several forms) is drawn through `Pen.vary` and `Pen.pick`, which
keep the last part of every range, and the last of three forms or more, for testing alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from workshop.world.concepts import COLOURS

__all__ = ["DRAWINGS", "Pen", "draw"]

Point = tuple[float, float]
Fill = str | None
T = TypeVar("T")

_KEPT = 0.2  # of a range, for testing


class Pen:
    """Draws on a picture and on its silhouette, which lines without a filling have too.

    side: of the picture in pixels; held_out: with the forms kept for testing.
    """

    def __init__(self, rng: np.random.Generator, side: int, held_out: bool) -> None:
        self.rng, self.side, self.held_out = rng, side, held_out
        self.picture = Image.new("RGBA", (side, side))
        self.whole = Image.new("L", (side, side))
        self.onto, self.mask = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.whole)
        style = rng.random()
        self.filled = style < 0.75  # else lines alone
        self.lined = style >= 0.75 or rng.random() < 0.6
        dark = rng.integers(0, 60, 3) if rng.random() < 0.7 else rng.integers(0, 200, 3)
        self.ink = tuple(int(v) for v in dark)
        self.width = max(1, round(side * rng.uniform(0.012, 0.04)))
        self.wobble = rng.uniform(0, 0.012) if rng.random() < 0.4 else 0.0
        self.odd = rng.random() < 0.25  # colours as a child takes them
        self.shades: dict[str, tuple[int, int, int]] = {}

    def vary(self, low: float, high: float) -> float:
        """A number of a range, of the part that belongs to this split."""
        border = high - _KEPT * (high - low)
        return float(
            self.rng.uniform(border, high) if self.held_out else self.rng.uniform(low, border)
        )

    def pick(self, *forms: T) -> T:
        """One of some forms; the last of three or more is for testing, and no other then."""
        if len(forms) < 3:
            return forms[self.rng.integers(len(forms))]
        return forms[-1] if self.held_out else forms[self.rng.integers(len(forms) - 1)]

    def colour(self, name: str) -> tuple[int, int, int]:
        """The drawing's shade of a named colour, or of another where it has odd ones."""
        if name not in self.shades:
            taken = name
            if self.odd and name not in ("black", "white"):
                taken = tuple(COLOURS)[self.rng.integers(len(COLOURS))]
            red, green, blue = COLOURS[taken]
            light, tint = self.rng.integers(-25, 26), self.rng.integers(-12, 13, 3)
            shade = np.clip(np.array((red, green, blue)) + light + tint, 0, 255)
            self.shades[name] = int(shade[0]), int(shade[1]), int(shade[2])
        return self.shades[name]

    def polygon(self, points: Sequence[Point], fill: Fill) -> None:
        """A closed outline, filled with a colour by its name."""
        self._polygon(self._placed(points), fill)

    def _polygon(self, placed: list[Point], fill: Fill) -> None:
        self.mask.polygon(placed, fill=255)
        if self.filled and fill:
            self.onto.polygon(placed, fill=(*self.colour(fill), 255))
        if self.lined or not fill:
            self.onto.line([*placed, placed[0], placed[1]], (*self.ink, 255), self.width, "curve")
            self.mask.line([*placed, placed[0]], 255, self.width)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Fill) -> None:
        """A rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def round(self, x: float, y: float, rx: float, fill: Fill, ry: float | None = None) -> None:
        """A circle or an ellipse around a point."""
        ry = rx if ry is None else ry
        [(cx, cy)] = self._placed([(x, y)])
        turn = np.linspace(0, 2 * math.pi, 28, endpoint=False) + 0.3
        squash = self.rng.normal(0, 2 * self.wobble) if self.wobble else 0.0  # a wobbly hand's
        radii = rx * (1 + squash * np.cos(2 * turn)), ry * (1 + squash * np.sin(3 * turn))
        xs, ys = cx + self.side * radii[0] * np.cos(turn), cy + self.side * radii[1] * np.sin(turn)
        self._polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill)

    def dot(self, x: float, y: float, r: float, fill: str = "black") -> None:
        """A small disc, filled even where nothing else is."""
        (cx, cy), r = self._placed([(x, y)])[0], r * self.side
        self.onto.ellipse((cx - r, cy - r, cx + r, cy + r), (*self._always(fill), 255))
        self.mask.ellipse((cx - r, cy - r, cx + r, cy + r), 255)

    def _always(self, name: str) -> tuple[int, ...]:
        return self.colour(name) if self.filled else self.ink

    def line(self, points: Sequence[Point], fill: str = "black", width: float = 0.0) -> None:
        """An open line; width as a share of the side, the pen's own by default."""
        placed = self._placed(points)
        thick = max(self.width, round(width * self.side))
        colour = self._always(fill) if fill != "black" else self.ink
        self.onto.line(placed, (*colour, 255), thick, "curve")
        self.mask.line(placed, 255, thick, "curve")

    def arc(
        self, x: float, y: float, r: float, start: float, end: float, fill: str = "black"
    ) -> None:
        """A part of a circle as an open line, degrees clockwise from the right."""
        angles = np.radians(np.linspace(start, end, 12))
        self.line([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill)

    def _placed(self, points: Sequence[Point]) -> list[Point]:
        scale = self.side
        if not self.wobble:
            return [(x * scale, y * scale) for x, y in points]
        moves = self.rng.normal(0, self.wobble, (len(points), 2))
        return [
            ((x + dx) * scale, (y + dy) * scale)
            for (x, y), (dx, dy) in zip(points, moves.tolist(), strict=True)
        ]


def _house(p: Pen) -> None:
    w, eaves = p.vary(0.3, 0.42), p.vary(0.4, 0.52)
    if p.pick(False, True):
        p.box(0.5 + w * 0.4, 0.14, 0.5 + w * 0.65, eaves, p.pick("red", "brown"))
    p.box(
        0.5 - w, eaves, 0.5 + w, 0.92, p.pick("yellow", "white", "red", "orange", "brown", "pink")
    )
    over = p.vary(0.0, 0.08)
    p.polygon(
        [(0.5 - w - over, eaves), (0.5, 0.1), (0.5 + w + over, eaves)],
        p.pick("red", "brown", "blue"),
    )
    door = p.pick(0.5, 0.5 - w * 0.5, 0.5 + w * 0.5)
    p.box(door - 0.07, 0.68, door + 0.07, 0.92, p.pick("brown", "blue", "green"))
    if door != 0.5 or p.vary(0, 1) > 0.5:
        x = 0.5 + w * 0.5 if door <= 0.5 else 0.5 - w * 0.5
        p.box(x - 0.07, eaves + 0.1, x + 0.07, eaves + 0.24, "blue")
        p.line([(x, eaves + 0.1), (x, eaves + 0.24)])


def _face(p: Pen, mouth: str) -> None:
    p.round(0.5, 0.5, 0.42, p.pick("yellow", "yellow", "yellow"))
    gap, up = p.vary(0.12, 0.2), p.vary(0.34, 0.44)
    for x in (0.5 - gap, 0.5 + gap):
        p.dot(x, up, p.vary(0.03, 0.065))
    if mouth == "sad":
        p.arc(0.5, 0.84, p.vary(0.16, 0.24), 215, 325)
    elif p.pick(True, True):
        p.arc(0.5, p.vary(0.48, 0.56), p.vary(0.2, 0.27), 20, 160)
    if p.pick(True, False, True) and mouth == "nose":
        p.line([(0.5, 0.48), (0.5, 0.56)])


def _smiley(p: Pen) -> None:
    _face(p, "nose" if p.vary(0, 1) > 0.7 else "happy")


def _sad(p: Pen) -> None:
    _face(p, "sad")


def _stick(p: Pen) -> None:
    p.filled = p.filled and p.vary(0, 1) > 0.5
    head, hip = p.vary(0.09, 0.14), p.vary(0.56, 0.66)
    p.round(0.5, 0.06 + head, head, p.pick("yellow", "pink", "white"))
    p.line([(0.5, 0.06 + 2 * head), (0.5, hip)], width=0.02)
    spread, shoulder = p.vary(0.14, 0.24), p.vary(0.36, 0.44)
    lift = p.pick(0.14, -0.14, 0.02)
    p.line(
        [(0.5 - spread, shoulder + lift), (0.5, shoulder), (0.5 + spread, shoulder + lift)],
        width=0.02,
    )
    p.line([(0.5 - spread, 0.95), (0.5, hip), (0.5 + spread, 0.95)], width=0.02)


def _flag(p: Pen) -> None:
    top, bottom = 0.1, p.vary(0.46, 0.6)
    p.line([(0.2, 0.06), (0.2, 0.95)], "brown", 0.035)
    hues = [
        p.pick("red", "white"),
        p.pick("white", "yellow", "blue"),
        p.pick("blue", "green", "black", "red"),
    ]
    kind = p.pick("across", "down", "plain", "triangle", "cross")
    if kind == "triangle":
        p.polygon([(0.2, top), (0.85, (top + bottom) / 2), (0.2, bottom)], "red")
    elif kind == "plain":
        p.box(0.2, top, 0.88, bottom, p.pick("red", "blue", "green", "white"))
    elif kind == "cross":
        p.box(0.2, top, 0.88, bottom, "red")
        p.box(0.2, (top + bottom) / 2 - 0.05, 0.88, (top + bottom) / 2 + 0.05, "white")
        p.box(0.38, top, 0.48, bottom, "white")
    else:
        for i, hue in enumerate(hues):
            if kind == "across":
                a, b = (top + (bottom - top) * (i + j) / 3 for j in (0, 1))
                p.box(0.2, a, 0.88, b, hue)
            else:
                a, b = (0.2 + 0.68 * (i + j) / 3 for j in (0, 1))
                p.box(a, top, b, bottom, hue)


def _sun(p: Pen) -> None:
    r, rays = p.vary(0.18, 0.26), int(p.vary(7, 15))
    for i in range(rays):
        a = 2 * math.pi * i / rays
        far = 0.46
        if p.held_out:
            side = 0.06
            p.polygon(
                [
                    (0.5 + far * math.cos(a), 0.5 + far * math.sin(a)),
                    (0.5 + r * math.cos(a + side * 3), 0.5 + r * math.sin(a + side * 3)),
                    (0.5 + r * math.cos(a - side * 3), 0.5 + r * math.sin(a - side * 3)),
                ],
                "orange",
            )
        else:
            near = r + 0.05
            points = [(0.5 + d * math.cos(a), 0.5 + d * math.sin(a)) for d in (near, far)]
            p.line(points, "yellow", 0.03)
    p.round(0.5, 0.5, r, "yellow")


def _tree(p: Pen) -> None:
    w = p.vary(0.05, 0.09)
    p.box(0.5 - w, 0.55, 0.5 + w, 0.95, "brown")
    if p.pick("one", "three", "oval") == "three":
        for x, y in ((0.32, 0.42), (0.68, 0.42), (0.5, 0.27)):
            p.round(x, y, 0.22, "green")
    else:
        p.round(0.5, 0.36, p.vary(0.26, 0.34), "green", 0.3)


def _pine(p: Pen) -> None:
    p.box(0.45, 0.78, 0.55, 0.96, "brown")
    layers = p.pick(1, 3, 2)
    for i in range(layers):
        low = 0.8 - 0.22 * i if layers > 1 else 0.8
        w = (0.34 - 0.07 * i) * p.vary(0.9, 1.1)
        p.polygon(
            [(0.5 - w, low), (0.5, low - (0.7 if layers == 1 else 0.34)), (0.5 + w, low)], "green"
        )


def _cloud(p: Pen) -> None:
    hue = p.pick("white", "blue", "grey")
    lined, p.lined = p.lined, False
    if not p.filled:
        p.filled, p.odd = True, False
    for x, y, r in ((0.26, 0.58, 0.17), (0.44, 0.44, 0.21), (0.64, 0.48, 0.19), (0.78, 0.6, 0.15)):
        p.round(x, y, r * p.vary(0.9, 1.05), hue)
    p.box(0.24, 0.58, 0.8, 0.745, hue)
    p.lined = lined


def _car(p: Pen) -> None:
    hue, h = p.pick("red", "blue", "green", "yellow"), p.vary(0.44, 0.52)
    roof = [(0.24, h), (0.34, 0.28), (0.66, 0.28), (0.78, h)]
    p.polygon(roof if p.pick(True, True) else [(0.3, h), (0.3, 0.3), (0.7, 0.3), (0.7, h)], hue)
    p.box(0.05, h, 0.95, 0.7, hue)
    p.polygon([(0.32, h), (0.38, 0.34), (0.48, 0.34), (0.48, h)], "white")
    p.polygon([(0.52, h), (0.52, 0.34), (0.63, 0.34), (0.7, h)], "white")
    for x in (0.26, 0.74):
        p.round(x, 0.71, p.vary(0.09, 0.12), "black")
        p.dot(x, 0.71, 0.04, "grey")


def _bus(p: Pen) -> None:
    p.box(0.05, 0.25, 0.95, 0.72, p.pick("red", "yellow", "orange"))
    count = int(p.vary(3, 6))
    for i in range(count):
        x = 0.1 + 0.82 * i / count
        p.box(x, 0.33, x + 0.82 / count - 0.04, 0.48, "blue")
    for x in (0.25, 0.75):
        p.round(x, 0.74, p.vary(0.08, 0.11), "black")


def _truck(p: Pen) -> None:
    p.box(0.04, 0.24, 0.62, 0.7, p.pick("white", "yellow", "green"))
    p.box(0.64, p.vary(0.36, 0.44), 0.95, 0.7, p.pick("red", "blue"))
    p.box(0.76, 0.46, 0.92, 0.56, "white")
    for x in (0.2, 0.46, 0.8):
        p.round(x, 0.73, 0.09, "black")


def _boat(p: Pen) -> None:
    p.line([(0.48, 0.1), (0.48, 0.66)], "brown", 0.025)
    p.polygon(
        [(0.52, 0.12), (0.52, 0.6), (p.vary(0.78, 0.9), 0.6)], p.pick("white", "red", "yellow")
    )
    if p.pick(True, False, False):
        p.polygon([(0.44, 0.2), (0.44, 0.6), (0.2, 0.6)], "white")
    p.polygon(
        [(0.1, 0.66), (0.9, 0.66), (p.vary(0.7, 0.8), 0.88), (0.28, 0.88)],
        p.pick("brown", "red", "blue"),
    )


def _flower(p: Pen) -> None:
    p.line([(0.5, 0.4), (0.5, 0.96)], "green", 0.03)
    p.polygon([(0.5, 0.8), (0.7, 0.66), (0.66, 0.8)], "green")
    petals, far = int(p.vary(5, 9)), p.vary(0.17, 0.21)
    hue = p.pick("red", "pink", "purple", "white", "blue", "yellow", "orange")
    for i in range(petals):
        a = 2 * math.pi * i / petals
        p.round(0.5 + far * math.cos(a), 0.3 + far * math.sin(a), 0.11, hue)
    p.round(0.5, 0.3, 0.11, "yellow" if hue != "yellow" else "brown")


def _tulip(p: Pen) -> None:
    p.line([(0.5, 0.4), (0.5, 0.96)], "green", 0.03)
    p.polygon([(0.5, 0.9), (0.28, p.vary(0.55, 0.65)), (0.44, 0.66)], "green")
    cup = [
        (0.28, 0.1),
        (0.4, 0.24),
        (0.5, 0.08),
        (0.6, 0.24),
        (0.72, 0.1),
        (0.7, 0.36),
        (0.5, 0.48),
        (0.3, 0.36),
    ]
    p.polygon(cup, p.pick("red", "pink", "yellow", "purple"))


def _fish(p: Pen) -> None:
    hue = p.pick("orange", "blue", "red", "green", "yellow")
    p.polygon([(0.68, 0.5), (0.95, p.vary(0.26, 0.34)), (0.95, 0.7)], hue)
    p.round(0.42, 0.5, 0.34, hue, p.vary(0.18, 0.25))
    p.dot(0.22, 0.45, 0.035, "black")
    if p.pick(True, False):
        p.polygon([(0.36, 0.32), (0.5, 0.16), (0.56, 0.34)], hue)


def _snowman(p: Pen) -> None:
    low, middle = p.vary(0.22, 0.26), p.vary(0.15, 0.19)
    p.lined = True
    p.round(0.5, 0.96 - low, low, "white")
    p.round(0.5, 0.98 - 2 * low - middle, middle, "white")
    y = 0.99 - 2 * low - 2 * middle
    p.round(0.5, y - 0.1, 0.12, "white") if p.pick(True, True) else None
    p.dot(0.46, y - 0.13, 0.018)
    p.dot(0.54, y - 0.13, 0.018)
    p.polygon([(0.5, y - 0.1), (0.66, y - 0.07), (0.5, y - 0.06)], "orange")
    if p.pick(True, False):
        p.box(0.4, y - 0.32, 0.6, y - 0.2, "black")
        p.line([(0.34, y - 0.2), (0.66, y - 0.2)], width=0.03)


def _umbrella(p: Pen) -> None:
    angles = np.radians(np.linspace(180, 360, 14))
    dome = [(0.5 + 0.42 * math.cos(a), 0.48 + p.vary(0.34, 0.36) * math.sin(a)) for a in angles]
    p.line([(0.5, 0.46), (0.5, 0.85)], width=0.03)
    p.arc(0.43, 0.85, 0.07, 0, 170)
    p.polygon(dome, p.pick("red", "blue", "purple", "green"))


def _cup(p: Pen) -> None:
    p.arc(0.72, 0.5, p.vary(0.12, 0.17), -80, 80)
    low = p.vary(0.3, 0.36)
    hue = p.pick("white", "blue", "red", "yellow")
    p.polygon([(0.22, 0.28), (0.72, 0.28), (1 - low - 0.06, 0.82), (low - 0.02, 0.82)], hue)
    if p.pick(True, False):
        for x in (0.36, 0.48, 0.6):
            p.line([(x, 0.22), (x + 0.03, 0.16), (x - 0.02, 0.1), (x + 0.02, 0.04)], "grey")


def _balloon(p: Pen) -> None:
    p.line([(0.5, 0.66), (0.46, 0.78), (0.54, 0.88), (0.5, 0.98)])
    p.polygon([(0.46, 0.7), (0.54, 0.7), (0.5, 0.62)], "red")
    p.round(0.5, 0.35, p.vary(0.24, 0.3), p.pick("red", "blue", "green", "yellow", "purple"), 0.32)


def _moon(p: Pen) -> None:
    depth = p.vary(0.3, 0.6)
    out = np.radians(np.linspace(70, 290, 22))
    outer = [(0.6 + 0.4 * math.cos(a), 0.5 + 0.42 * math.sin(a)) for a in out]
    inner = [
        (0.6 + 0.4 * (math.cos(a) * (1 - depth)) + 0.137 * depth, 0.5 + 0.42 * math.sin(a))
        for a in out[::-1]
    ]
    p.polygon([*outer, *inner[1:-1]], p.pick("yellow", "yellow"))


def _lollipop(p: Pen) -> None:
    p.line([(0.5, 0.5), (0.5, 0.97)], "grey", 0.035)
    p.round(0.5, 0.32, p.vary(0.22, 0.28), p.pick("red", "pink", "purple"))
    angles = np.linspace(0, 5 * math.pi, 30)
    p.line(
        [(0.5 + 0.011 * a * math.cos(a), 0.32 + 0.011 * a * math.sin(a)) for a in angles], "white"
    )


def _ice_cream(p: Pen) -> None:
    p.polygon([(0.3, 0.42), (0.7, 0.42), (0.5, p.vary(0.9, 0.98))], "brown")
    hues = ("pink", "white", "brown")
    for i in range(p.pick(1, 2, 3)):
        p.round(0.5, 0.34 - 0.16 * i, 0.2 - 0.03 * i, hues[i])


def _mountain(p: Pen) -> None:
    peak, second = p.vary(0.35, 0.48), p.vary(0.35, 0.45)
    hue = p.pick("grey", "brown", "green")
    p.polygon([(0.45, 0.85), (0.76, second), (0.98, 0.85)], hue)
    p.polygon([(0.03, 0.85), (peak, 0.12), (0.8, 0.85)], hue)
    if p.pick(True, False):
        side = 0.3 * (0.8 - peak)
        snow = [(peak - 0.3 * (peak - 0.03), 0.339), (peak, 0.12), (peak + side, 0.339)]
        p.polygon([*snow, (peak + side / 3, 0.28), (peak, 0.36), (peak - 0.06, 0.28)], "white")


def _ladder(p: Pen) -> None:
    w, rungs = p.vary(0.14, 0.2), int(p.vary(4, 8))
    for x in (0.5 - w, 0.5 + w):
        p.line([(x, 0.05), (x, 0.95)], "brown", 0.035)
    for i in range(rungs):
        y = 0.14 + 0.74 * i / (rungs - 1)
        p.line([(0.5 - w, y), (0.5 + w, y)], "brown", 0.03)


def _traffic_light(p: Pen) -> None:
    p.odd = False
    p.filled = True
    p.box(0.5 - p.vary(0.13, 0.17), 0.06, 0.66, 0.8, "black")
    for y, hue in ((0.19, "red"), (0.43, "yellow"), (0.67, "green")):
        p.dot(0.5, y, 0.09, hue)
    p.box(0.46, 0.8, 0.54, 0.97, "grey")


def _bolt(p: Pen) -> None:
    x = p.vary(0.5, 0.6)
    p.polygon(
        [
            (x, 0.05),
            (0.25, 0.55),
            (0.46, 0.55),
            (0.36, 0.95),
            (0.75, 0.42),
            (0.54, 0.42),
            (0.7, 0.05),
        ],
        p.pick("yellow", "orange"),
    )


def _drop(p: Pen) -> None:
    angles = np.radians(np.linspace(-30, 210, 16))
    r = p.vary(0.24, 0.3)
    p.polygon(
        [(0.5, 0.08), *((0.5 + r * math.cos(a), 0.64 + r * math.sin(a)) for a in angles)], "blue"
    )


def _mushroom(p: Pen) -> None:
    p.polygon([(0.4, 0.5), (0.6, 0.5), (p.vary(0.62, 0.68), 0.92), (0.36, 0.92)], "white")
    angles = np.radians(np.linspace(180, 360, 14))
    p.polygon(
        [(0.5 + 0.4 * math.cos(a), 0.54 + 0.42 * math.sin(a)) for a in angles],
        p.pick("red", "brown"),
    )
    for x, y in ((0.34, 0.4), (0.52, 0.27), (0.66, 0.42)):
        p.dot(x, y, p.vary(0.03, 0.05), "white")


def _apple(p: Pen) -> None:
    p.line([(0.5, 0.28), (p.vary(0.52, 0.6), 0.1)], "brown", 0.03)
    p.polygon([(0.54, 0.2), (0.7, 0.08), (0.72, 0.2)], "green")
    turn = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    p.polygon(
        [
            (
                0.5 + (0.34 + 0.03 * math.cos(2 * t)) * math.sin(t),
                0.58
                - (0.33 - 0.07 * math.exp(-((math.sin(t) * 4) ** 2)) * (math.cos(t) > 0))
                * math.cos(t),
            )
            for t in turn
        ],
        p.pick("red", "red", "red"),
    )


def _cherries(p: Pen) -> None:
    for x, y in ((0.28, 0.72), (0.68, p.vary(0.66, 0.78))):
        p.line([(0.55, 0.1), ((x + 0.5) / 2, 0.35), (x, y)], "green", 0.02)
        p.round(x, y, 0.18, "red")


def _butterfly(p: Pen) -> None:
    hue = p.pick("orange", "blue", "purple", "pink", "yellow")
    for side in (-1, 1):
        p.round(0.5 + side * 0.22, p.vary(0.32, 0.38), 0.2, hue, 0.22)
        p.round(0.5 + side * 0.17, 0.68, 0.15, hue, 0.16)
        p.line([(0.5, 0.28), (0.5 + side * 0.1, 0.1)])
    p.round(0.5, 0.5, 0.04, "black", 0.27)


def _cat(p: Pen) -> None:
    hue, ear = p.pick("grey", "orange", "black", "brown"), p.vary(0.08, 0.14)
    for side in (-1, 1):
        p.polygon(
            [(0.5 + side * 0.34, 0.42), (0.5 + side * 0.3, ear), (0.5 + side * 0.08, 0.26)], hue
        )
    p.round(0.5, 0.55, 0.36, hue, 0.34)
    eye = "green" if hue != "black" else "yellow"
    for side in (-1, 1):
        p.dot(0.5 + side * 0.14, 0.48, 0.05, eye)
        for dy in (0.0, 0.07):
            p.line(
                [(0.5 + side * 0.1, 0.64 + dy / 2), (0.5 + side * 0.42, 0.6 + dy)],
                "white" if hue == "black" else "black",
            )
    p.polygon([(0.46, 0.58), (0.54, 0.58), (0.5, 0.63)], "pink")


def _key(p: Pen) -> None:
    p.line([(0.35, 0.5), (0.92, 0.5)], "yellow", 0.06)
    for x in (p.vary(0.7, 0.76), 0.88):
        p.line([(x, 0.5), (x, 0.66)], "yellow", 0.05)
    p.round(0.25, 0.5, 0.18, "yellow")
    p.dot(0.22, 0.5, 0.06, "white")


def _envelope(p: Pen) -> None:
    p.lined = True
    top = p.vary(0.26, 0.32)
    p.box(0.08, top, 0.92, 0.78, p.pick("white", "yellow", "blue"))
    p.line([(0.08, top), (0.5, p.vary(0.5, 0.58)), (0.92, top)])


def _open_book(p: Pen) -> None:
    p.lined = True
    rise = p.vary(0.04, 0.1)
    for side in (-1, 1):
        p.polygon(
            [(0.5, 0.3), (0.5 + side * 0.42, 0.3 - rise), (0.5 + side * 0.42, 0.75), (0.5, 0.82)],
            "white",
        )
        for i in range(4):
            y = 0.4 + 0.09 * i
            p.line([(0.5 + side * 0.07, y), (0.5 + side * 0.35, y - rise / 2)], "grey")


def _door(p: Pen) -> None:
    p.box(0.28, 0.05, 0.72, 0.95, p.pick("brown", "red", "blue", "green"))
    p.dot(p.pick(0.36, 0.64), p.vary(0.5, 0.56), 0.03, "yellow")
    if p.pick(True, False):
        p.box(0.36, 0.14, 0.64, 0.4, None)


def _window(p: Pen) -> None:
    p.lined = True
    p.box(0.14, 0.1, 0.86, p.vary(0.82, 0.92), "blue")
    p.line([(0.5, 0.1), (0.5, 0.86)], "white" if p.filled else "black", 0.04)
    p.line([(0.14, 0.48), (0.86, 0.48)], "white" if p.filled else "black", 0.04)


def _clock(p: Pen) -> None:
    p.lined = True
    p.round(0.5, 0.5, 0.43, p.pick("white", "yellow"))
    for i in range(12):
        a = 2 * math.pi * i / 12
        p.line([(0.5 + d * math.sin(a), 0.5 - d * math.cos(a)) for d in (p.vary(0.34, 0.38), 0.41)])
    for length, a in ((0.2, p.rng.uniform(0, 6.28)), (0.31, p.rng.uniform(0, 6.28))):
        p.line([(0.5, 0.5), (0.5 + length * math.sin(a), 0.5 - length * math.cos(a))], width=0.035)


def _gift(p: Pen) -> None:
    hue = p.pick("red", "blue", "green", "purple")
    band = "yellow" if hue != "yellow" else "red"
    for side in (-1, 1):
        p.polygon([(0.5, 0.3), (0.5 + side * 0.2, 0.1), (0.5 + side * 0.24, 0.26)], band)
    p.box(0.12, p.vary(0.3, 0.36), 0.88, 0.92, hue)
    p.box(0.44, 0.33, 0.56, 0.92, band)


def _candle(p: Pen) -> None:
    p.box(0.38, p.vary(0.38, 0.46), 0.62, 0.95, p.pick("white", "red", "yellow"))
    p.line([(0.5, 0.42), (0.5, 0.32)], width=0.02)
    p.polygon([(0.5, 0.06), (0.58, 0.24), (0.5, 0.34), (0.42, 0.24)], "orange")


def _rocket(p: Pen) -> None:
    for side in (-1, 1):
        p.polygon(
            [(0.5 + side * 0.14, 0.5), (0.5 + side * 0.3, 0.8), (0.5 + side * 0.14, 0.74)], "red"
        )
    p.polygon([(0.42, 0.76), (0.58, 0.76), (0.5, p.vary(0.9, 0.98))], "orange")
    p.polygon(
        [(0.5, 0.04), (0.64, 0.3), (0.64, 0.76), (0.36, 0.76), (0.36, 0.3)],
        p.pick("white", "grey", "blue"),
    )
    p.round(0.5, 0.4, 0.07, "blue")


def _die(p: Pen) -> None:
    p.lined = True
    p.box(0.12, 0.12, 0.88, 0.88, p.pick("white", "red"))
    spots = {1: [(1, 1)], 2: [(0, 0), (2, 2)], 3: [(0, 0), (1, 1), (2, 2)]}
    spots[4] = [(0, 0), (0, 2), (2, 0), (2, 2)]
    spots[5], spots[6] = [*spots[4], (1, 1)], [*spots[4], (0, 1), (2, 1)]
    for i, j in spots[int(p.rng.integers(1, 7))]:
        p.dot(0.28 + 0.22 * i, 0.28 + 0.22 * j, p.vary(0.05, 0.08))


def _target(p: Pen) -> None:
    p.odd, rings = False, p.pick(3, 5, 4)
    for i in range(rings):
        p.round(0.5, 0.5, 0.44 * (1 - i / rings), "red" if i % 2 == 0 else "white")


def _kite(p: Pen) -> None:
    middle = p.vary(0.34, 0.4)
    p.line([(0.5, 0.76), (0.42, 0.84), (0.54, 0.9), (0.46, 0.98)])
    p.polygon(
        [(0.5, 0.04), (0.78, middle), (0.5, 0.78), (0.22, middle)],
        p.pick("red", "blue", "yellow", "green"),
    )
    p.line([(0.5, 0.04), (0.5, 0.78)])
    p.line([(0.22, middle), (0.78, middle)])


def _rainbow(p: Pen) -> None:
    p.odd, p.filled = False, True
    hues = ("red", "orange", "yellow", "green", "blue", "purple")
    band = p.vary(0.045, 0.058)
    for i, hue in enumerate(hues):
        angles = np.radians(np.linspace(180, 360, 20))
        r = 0.44 - band * i
        p.line([(0.5 + r * math.cos(a), 0.7 + r * math.sin(a)) for a in angles], hue, band + 0.01)


def _eye(p: Pen) -> None:
    p.lined = True
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    tall = p.vary(0.2, 0.28)
    p.polygon(
        [
            (0.5 + 0.44 * math.cos(a), 0.5 + tall * math.sin(a) * abs(math.sin(a)) ** 0.2)
            for a in angles
        ],
        "white",
    )
    p.round(0.5, 0.5, 0.16, p.pick("blue", "green", "brown"))
    p.dot(0.5, 0.5, 0.075)


def _pencil(p: Pen) -> None:
    w = p.vary(0.08, 0.12)
    p.polygon([(0.5 - w, 0.74), (0.5 + w, 0.74), (0.5, 0.97)], "white")
    p.box(0.5 - w, 0.12, 0.5 + w, 0.74, p.pick("yellow", "red", "green"))
    p.box(0.5 - w, 0.03, 0.5 + w, 0.12, "pink")
    p.dot(0.5, 0.94, 0.02)


def _hat(p: Pen) -> None:
    p.box(0.28, p.vary(0.12, 0.22), 0.72, 0.74, "black")
    p.box(0.28, 0.58, 0.72, 0.66, p.pick("red", "white"))
    p.box(0.08, 0.74, 0.92, 0.84, "black")


def _cake(p: Pen) -> None:
    p.box(0.1, 0.5, 0.9, 0.9, p.pick("pink", "white", "brown"))
    p.box(0.1, p.vary(0.44, 0.5), 0.9, 0.58, p.pick("white", "red"))
    count = p.pick(1, 3, 2)
    for i in range(count):
        x = 0.5 + 0.22 * (i - (count - 1) / 2)
        p.box(x - 0.025, 0.26, x + 0.025, 0.48, "blue")
        p.dot(x, 0.2, 0.035, "orange")


def _television(p: Pen) -> None:
    for side in (-1, 1):
        p.line([(0.5, 0.24), (0.5 + side * p.vary(0.14, 0.22), 0.06)])
    p.box(0.08, 0.24, 0.92, 0.86, p.pick("brown", "black", "grey"))
    p.box(0.16, 0.32, 0.7, 0.78, "white")
    for y in (0.42, 0.56):
        p.dot(0.81, y, 0.035, "red")


def _chair(p: Pen) -> None:
    p.box(0.24, 0.06, 0.34, p.vary(0.5, 0.56), p.pick("brown", "red"))
    p.box(0.24, 0.5, 0.78, 0.6, "brown")
    for x in (0.28, 0.72):
        p.line([(x, 0.6), (x, 0.95)], "brown", 0.05)


def _glasses(p: Pen) -> None:
    p.lined = True
    r = p.vary(0.15, 0.19)
    for side in (-1, 1):
        p.round(0.5 + side * 0.23, 0.5, r, None)
        p.line([(0.5 + side * (0.23 + r), 0.47), (0.5 + side * 0.48, 0.4)], width=0.03)
    p.arc(0.5, 0.52, 0.08, 200, 340)


def _spider(p: Pen) -> None:
    for side in (-1, 1):
        for i in range(4):
            y = 0.4 + 0.08 * i
            p.line(
                [
                    (0.5, y),
                    (0.5 + side * 0.28, y - 0.1 + 0.06 * i),
                    (0.5 + side * 0.42, y + 0.1 * (i - 1)),
                ],
                width=0.02,
            )
    p.round(0.5, 0.58, p.vary(0.14, 0.18), "black", 0.18)
    p.round(0.5, 0.36, 0.1, "black")


def _snail(p: Pen) -> None:
    p.line([(0.1, 0.82), (0.8, 0.82), (0.88, 0.6)], p.pick("brown", "yellow"), 0.12)
    for dx in (-0.06, 0.06):
        p.line([(0.88, 0.56), (0.88 + dx, 0.42)])
    p.round(0.44, 0.54, p.vary(0.25, 0.29), p.pick("brown", "orange", "pink"))
    angles = np.linspace(0, 4.5 * math.pi, 26)
    p.line([(0.44 + 0.0135 * a * math.cos(a), 0.54 + 0.0135 * a * math.sin(a)) for a in angles])


def _bed(p: Pen) -> None:
    p.box(0.06, p.vary(0.3, 0.38), 0.12, 0.86, "brown")
    p.box(0.88, 0.54, 0.94, 0.86, "brown")
    p.box(0.12, 0.6, 0.88, 0.76, p.pick("blue", "red", "green"))
    p.box(0.14, 0.5, 0.32, 0.6, "white")


def _magnifier(p: Pen) -> None:
    p.lined = True
    p.line([(0.58, 0.58), (0.92, 0.92)], "brown", 0.08)
    p.round(0.4, 0.4, p.vary(0.26, 0.31), "white")


def _train(p: Pen) -> None:
    hue = p.pick("red", "blue", "green")
    p.box(0.62, 0.22, 0.94, 0.7, hue)
    p.box(0.68, 0.3, 0.88, 0.46, "white")
    p.box(0.1, 0.42, 0.62, 0.7, hue)
    p.box(0.18, p.vary(0.2, 0.28), 0.28, 0.42, "black")
    for x in (0.2, 0.42, 0.72, 0.86):
        p.round(x, 0.76, 0.085, "black")


def _phone(p: Pen) -> None:
    p.box(0.28, 0.05, 0.72, 0.95, p.pick("black", "grey"))
    p.box(0.33, 0.13, 0.67, p.vary(0.78, 0.84), p.pick("blue", "white"))
    p.dot(0.5, 0.89, 0.03, "white")


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "house": _house,
    "smiley face": _smiley,
    "sad face": _sad,
    "stick figure": _stick,
    "flag": _flag,
    "sun": _sun,
    "tree": _tree,
    "pine tree": _pine,
    "cloud": _cloud,
    "car": _car,
    "bus": _bus,
    "truck": _truck,
    "train": _train,
    "sailboat": _boat,
    "flower": _flower,
    "tulip": _tulip,
    "fish": _fish,
    "snowman": _snowman,
    "umbrella": _umbrella,
    "cup": _cup,
    "balloon": _balloon,
    "moon": _moon,
    "lollipop": _lollipop,
    "ice cream cone": _ice_cream,
    "mountain": _mountain,
    "ladder": _ladder,
    "traffic light": _traffic_light,
    "lightning bolt": _bolt,
    "drop": _drop,
    "mushroom": _mushroom,
    "apple": _apple,
    "cherries": _cherries,
    "butterfly": _butterfly,
    "cat": _cat,
    "key": _key,
    "envelope": _envelope,
    "open book": _open_book,
    "door": _door,
    "window": _window,
    "clock": _clock,
    "gift": _gift,
    "candle": _candle,
    "rocket": _rocket,
    "die": _die,
    "target": _target,
    "kite": _kite,
    "rainbow": _rainbow,
    "eye": _eye,
    "pencil": _pencil,
    "hat": _hat,
    "cake": _cake,
    "television": _television,
    "chair": _chair,
    "pair of glasses": _glasses,
    "spider": _spider,
    "snail": _snail,
    "bed": _bed,
    "magnifying glass": _magnifier,
    "phone": _phone,
}
"""What can be drawn, by the concept's name."""


def draw(
    name: str, rng: np.random.Generator, side: int, held_out: bool
) -> tuple[Image.Image, Image.Image]:
    """A drawing (RGBA, premultiplied) and its silhouette (L), cropped to the silhouette."""
    pen = Pen(rng, side, held_out)
    DRAWINGS[name](pen)
    box = pen.whole.getbbox()
    return pen.picture.crop(box).convert("RGBa"), pen.whole.crop(box)
