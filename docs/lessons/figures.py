"""Draws the lessons' figures from real tensors: `make docs`, or with numbers after it, some.

Each function below `Drawing` draws the figure of one lesson, under its own name. The SVGs follow
the reader's light or dark scheme.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import paliglass
from paliglass import PRESETS
from paliglass.contrastive.folders import load_contrastive
from paliglass.fast.layout import CODES
from paliglass.inspect.info import describe
from paliglass.inspect.lessons import find
from paliglass.layers.masks import prefix_lm_mask
from paliglass.layers.rope import apply_rotary, rotary_cos_sin
from paliglass.tasks.boxes import parse_boxes

FOLDER = Path(__file__).parent / "figures"
SCENE = Path(__file__).parents[2] / "assets" / "scene.png"
STYLE = """
  text { fill: #22242a }
  .soft { fill: #6c6f78 } .mono { font-family: ui-monospace, monospace }
  .strong { font-weight: 650 } .white { fill: #fff }
  .box { fill: #efede6; stroke: #d6d2c6 } .line { stroke: #6c6f78; fill: none }
  .blue { fill: #2f6fb7 } .orange { fill: #d9822b } .green { fill: #3c8d5a } .grey { fill: #a2a6b2 }
  .faint { fill: #efede6 }
  .s-blue { stroke: #2f6fb7 } .s-orange { stroke: #d9822b } .s-green { stroke: #3c8d5a }
  .s-grey { stroke: #a2a6b2 } path.curve { fill: none; stroke-width: 2.2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e6e1 } .soft { fill: #9a9ca5 } .white { fill: #15171c }
    .box { fill: #282c35; stroke: #3c414d } .line { stroke: #9a9ca5 }
    .blue { fill: #6aa9ee } .orange { fill: #eda04f } .green { fill: #6cc38d }
    .grey { fill: #7d8290 } .faint { fill: #282c35 }
    .s-blue { stroke: #6aa9ee } .s-orange { stroke: #eda04f } .s-green { stroke: #6cc38d }
    .s-grey { stroke: #7d8290 }
  }
"""
# The boxes of a picture's, a prompt's and an answer's way, for drawings that have them.
PARTS = """<style>
  .vision { fill: #cfe1f5; stroke: #2f6fb7 } .words { fill: #d3ebda; stroke: #3c8d5a }
  .answer { fill: #fbe0c1; stroke: #d9822b }
  @media (prefers-color-scheme: dark) {
    .vision { fill: #1d3a5a } .words { fill: #1f4630 } .answer { fill: #56391a }
  }
</style>"""


class Drawing:
    """An SVG under way. Lengths in pixels; at most 400 wide, all of its text is read on a phone."""

    def __init__(self, height: float, width: float = 400) -> None:
        self.width, self.height = width, height
        self.small = 13.5 * width / 400  # 11 pixels on a phone's page, which is 328 wide
        self.parts: list[str] = []

    def rect(
        self, x: float, y: float, w: float, h: float, kind: str = "box", opacity: float = 1
    ) -> None:
        faded = "" if opacity >= 1 else f' fill-opacity="{opacity:.2f}"'
        self.parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
            f'rx="{min(3, w / 5, h / 5):.1f}"{faded}/>'
        )

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def label(self, x: float, y: float, w: float, h: float, words: str, kind: str = "box") -> None:
        """A box with words in it, line by line."""
        self.rect(x, y, w, h, kind)
        lines = words.split("\n")
        first = y + h / 2 + 4.5 - 8 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(x + w / 2, first + 16 * i, line, "soft small" if i else "strong")

    def arrow(self, x0: float, y0: float, x1: float, y1: float, kind: str = "line") -> None:
        angle = math.atan2(y1 - y0, x1 - x0)
        tips = [(x1 - 7 * math.cos(angle + d), y1 - 7 * math.sin(angle + d)) for d in (-0.45, 0.45)]
        path = f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" + "".join(
            f"M{x:.1f} {y:.1f}L{x1:.1f} {y1:.1f}" for x, y in tips
        )
        self.parts.append(f'<path class="{kind}" fill="none" stroke-width="1.5" d="{path}"/>')

    def heat(self, x: float, y: float, values: Tensor, cell: float, most: float = 0) -> None:
        """A matrix as squares: blue above 0, orange below, the fuller the further away."""
        most = most or values.abs().max().item() or 1
        if values.numel() > 300:
            return self.heat_image(x, y, values / most, cell)
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                place = x + j * cell, y + i * cell, cell - 1, cell - 1
                self.rect(*place, "faint")
                if abs(value) / most > 0.01:
                    self.rect(*place, "blue" if value > 0 else "orange", min(1, abs(value) / most))

    def legend(self, x: float, y: float, most: str, least: str = "0", kind: str = "blue") -> None:
        """A heat map's scale, 120 wide and 28 tall; from 0, or from orange to `kind`."""
        steps = 15
        for i in range(steps):
            value = 2 * i / (steps - 1) - 1 if least != "0" else i / (steps - 1)
            self.rect(x + 8 * i, y, 7.5, 12, "faint")
            self.rect(x + 8 * i, y, 7.5, 12, kind if value > 0 else "orange", abs(value))
        self.text(x, y + 25, least, "small soft", "start")
        self.text(x + 120, y + 25, most, "small soft", "end")

    def curve(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="curve {kind}" d="M{path}"/>')

    def plot(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        ranges: tuple[float, float, float, float],
        *curves: tuple[Sequence[float], Sequence[float], str],
    ) -> Callable[[float, float], tuple[float, float]]:
        """Curves over two axes. ranges: x from, to, y from, to. Returns where a point lies."""
        x0, x1, y0, y1 = ranges

        def place(a: float, b: float) -> tuple[float, float]:
            return x + (a - x0) / (x1 - x0) * w, y + h - (b - y0) / (y1 - y0) * h

        self.parts.append(f'<path class="line" d="M{x} {y}V{y + h}H{x + w}"/>')
        for xs, ys, kind in curves:
            inside = [(a, b) for a, b in zip(xs, ys, strict=True) if y0 <= b <= y1]
            self.curve([place(a, b) for a, b in inside], kind)
        return place

    def heat_image(self, x: float, y: float, values: Tensor, cell: float) -> None:
        """`heat`, at most 1, as one picture: many squares would make a large file."""
        blue, orange = torch.tensor([47, 111, 183]), torch.tensor([217, 130, 43])
        pixels = torch.where(values[..., None] > 0, blue, orange)
        alpha = (values.abs().clamp(max=1) * 15).round() * 17
        pixels = torch.cat((pixels, alpha[..., None]), -1).byte().numpy()
        rows, columns = values.shape
        self.rect(x, y, columns * cell, rows * cell, "faint")
        self.picture(x, y, columns * cell, Image.fromarray(pixels), rows * cell)

    def picture(
        self, x: float, y: float, w: float, image: Image.Image, h: float | None = None
    ) -> None:
        buffer = io.BytesIO()
        if image.mode == "RGB":
            image = image.quantize(64)
        image.save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h or w:.1f}" '
            'preserveAspectRatio="none" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{data}"/>'
        )

    def save(self, name: str) -> None:
        self.write(FOLDER / f"{name}.svg")

    def write(self, path: Path) -> None:
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        body = "\n".join(self.parts)
        fonts = (
            f"text {{ font: {max(self.small + 0.5, 13):g}px system-ui, sans-serif }} "
            f".small {{ font-size: {self.small:.4g}px }}"
        )
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{fonts}{STYLE}</style>\n'
            f"{body}\n</svg>\n",
            "utf-8",
        )


def mini() -> paliglass.PaliGemma:
    return paliglass.load("mini", device="cpu", dtype="float32")


def scene(edge: int = 128) -> Image.Image:
    return Image.open(SCENE).convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC)


def architecture(name: str) -> None:
    draw = Drawing(462)
    draw.parts.append(PARTS)
    config = PRESETS["paligemma-3b-224"]
    vision, text = config.vision_config, config.text_config
    patches, width, size = vision.num_patches, text.hidden_size, vision.image_size
    left, right, w, full = 6, 206, 188, 388
    draw.label(left, 10, w, 44, f"pixel_values\n3 × {size} × {size}", "vision")
    draw.label(right, 10, w, 60, "input_ids\n<image> … <image>\n<bos> caption en \\n", "words")
    layers = f"{vision.num_hidden_layers} layers of attention, MLP"
    draw.label(
        left, 82, w, 60, f"vision_tower\n{layers}\n{patches} × {vision.hidden_size}", "vision"
    )
    draw.label(left, 174, w, 44, f"multi_modal_projector\n{vision.hidden_size} → {width}", "vision")
    draw.label(right, 98, w, 120, f"embed_tokens\n{width} numbers a word\n× √{width}", "words")
    draw.label(left, 250, full, 30, "merge: features in the places of <image>", "faint")
    layers = f"{text.num_hidden_layers} layers of attention and MLP"
    heads = f"{text.num_attention_heads} query heads, {text.num_key_value_heads} key head"
    draw.label(left, 312, full, 60, f"language_model.model\n{layers}\n{heads}")
    draw.label(left, 404, full, 44, f"lm_head\n{text.vocab_size:,} logits: the next word", "answer")
    for x, y0, y1 in (
        (100, 54, 80),
        (100, 142, 172),
        (100, 218, 248),
        (300, 70, 96),
        (300, 218, 248),
        (200, 280, 310),
        (200, 372, 402),
    ):
        draw.arrow(x, y0, x, y1)
    draw.save(name)


def patches(name: str) -> None:
    m = mini()
    with paliglass.trace(m, layers=[0]) as t:
        m.caption(SCENE)
    vectors = t.pictures[0].patch_embeddings
    most = float(vectors.abs().quantile(0.98))
    draw = Drawing(498)
    config = m.model.config.vision_config
    edge, side, count = config.image_size, config.patches_per_side, config.num_patches
    draw.text(70, 18, f"{edge} × {edge} pixels", "soft")
    draw.text(70, 34, f"in {count} patches", "soft")
    draw.picture(6, 130, 128, scene(edge))
    for i in range(side + 1):
        at = 128 * i / side
        draw.parts.append(f'<path stroke="#fff" d="M{6 + at:.1f} 130v128M6 {130 + at:.1f}h128"/>')
    draw.arrow(139, 194, 156, 194)
    draw.text(290, 18, f"{count} vectors of {vectors.shape[1]} numbers", "soft")
    cell = 288 / count
    step = round(vectors.shape[1] * cell / 192)
    draw.text(290, 34, f"a row a patch; 1 number in {step}", "soft small")
    shown = vectors[:, ::step]
    draw.heat(194, 42, shown, cell, most=most)
    for patch in range(0, count, 3 * side):
        draw.text(188, 42 + cell * (patch + 0.5) + 5, str(patch), "small soft", "end")
    for place in (0, shown.shape[1] // 2, shown.shape[1] - 1):
        anchor = "end" if place else "start"
        draw.text(194 + cell * place, 345, str(step * place), "small soft", anchor)
    draw.legend(10, 330, f"+{most:.1f}", f"−{most:.1f}")
    matrix = m.model.vision_tower.vision_model.embeddings.patch_embedding.weight.detach().float()
    draw.text(200, 390, "16 rows of the matrix, each as a picture", "soft")
    longest = matrix.flatten(1).norm(dim=1).topk(16).indices.sort().values
    for i, row in enumerate(matrix[longest]):
        pixels = (127.5 * (1 + row / row.abs().max())).round().byte().permute(1, 2, 0).numpy()
        x, y = 10 + 48 * (i % 8), 400 + 48 * (i // 8)
        draw.picture(x, y, 44, Image.fromarray(pixels))
    draw.save(name)


def positions(name: str) -> None:
    m = mini()
    table = m.model.vision_tower.vision_model.embeddings.position_embedding.weight.detach().float()
    unit = torch.nn.functional.normalize(table - table.mean(0), dim=-1)
    draw = Drawing(424)
    draw.text(200, 18, "sinusoidal: a row is a position, a column a channel", "soft")
    place = torch.arange(30)[:, None].float()
    speed = 10000.0 ** (-torch.arange(16).float() / 16)
    table = torch.stack((torch.sin(place * speed), torch.cos(place * speed)), -1).flatten(1)
    draw.heat(84, 28, table, 7.4)
    for row in (0, 10, 20, 29):
        draw.text(80, 28 + 7.4 * row + 9, str(row), "small soft", "end")
    draw.text(200, 278, "learned (mini): the vectors that a patch's own resembles", "soft")
    side = m.model.config.vision_config.patches_per_side
    cell = 88 / side
    for i, (down, along) in enumerate(((0.1, 0.1), (0.3, 0.5), (0.5, 0.4), (0.9, 0.8))):
        x, y, row, column = 12 + 96 * i, 290.0, int(down * side), int(along * side)
        alike = unit @ unit[side * row + column]
        draw.heat_image(x, y, alike.reshape(side, side), cell)
        draw.parts.append(
            f'<rect x="{x + cell * column:.1f}" y="{y + cell * row:.1f}" width="{cell:.1f}" '
            f'height="{cell:.1f}" fill="none" stroke="#fff" stroke-width="2.5"/>'
        )
    draw.legend(84, 392, "+1", "−1")
    draw.text(214, 402, "value above, cosine below", "soft small", "start")
    draw.save(name)


def norms(name: str) -> None:
    torch.manual_seed(3)
    x = torch.randn(5, 6) * torch.tensor([0.5, 1, 2, 1, 0.7, 1.5]) + torch.linspace(-1, 2, 6)
    rows = [
        ("input", x, "a row is a token"),
        ("BatchNorm", (x - x.mean(0)) / x.std(0, correction=0), "each column"),
        (
            "LayerNorm",
            (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True),
            "each row",
        ),
        ("RMSNorm", x / x.square().mean(1, keepdim=True).sqrt(), "each row, no mean"),
    ]
    draw = Drawing(378)
    for i, (title, values, how) in enumerate(rows):
        left, top = 28 + 200 * (i % 2), 18 + 166 * (i // 2)
        draw.text(left + 72, top, title, "strong")
        draw.heat(left, top + 10, values, 24, most=3)
        draw.text(left + 72, top + 146, how, "soft small")
    draw.legend(140, 346, "+3", "−3")
    draw.save(name)


def covariate_shift(name: str) -> None:
    torch.manual_seed(3)
    draw = Drawing(280)
    train, test = torch.randn(60) * 0.5 + 0.5, torch.randn(60) * 0.3

    def fit(points: Tensor, weights: Tensor) -> tuple[float, float]:
        columns = torch.stack((points, torch.ones_like(points)), 1)
        target = columns.T @ (weights * (points**3 - points))
        slope, start = torch.linalg.solve(columns.T @ (weights[:, None] * columns), target)
        return slope.item(), start.item()

    def density(points: Tensor, mean: float, deviation: float) -> Tensor:
        return torch.exp(-(((points - mean) / deviation) ** 2) / 2) / deviation

    weights = density(train, 0, 0.3) / density(train, 0.5, 0.5)
    xs = torch.linspace(-1, 1.6, 80)
    lines = ((fit(train, torch.ones(60)), "s-grey"), (fit(train, weights), "s-orange"))
    place = draw.plot(
        14,
        12,
        372,
        150,
        (-1, 1.6, -0.9, 1.5),
        (xs.tolist(), (xs**3 - xs).tolist(), "s-blue"),
        *((xs.tolist(), (slope * xs + start).tolist(), kind) for (slope, start), kind in lines),
    )
    for points, kind, level in ((train, "grey", -0.86), (test, "green", -0.76)):
        for point in points.tolist():
            if -1 < point < 1.6:
                a, b = place(point, level)
                draw.rect(a - 1.5, b - 4, 3, 8, kind, 0.8)
    for i, (words, kind) in enumerate(
        (
            ("the truth", "blue"),
            ("training inputs, and the line fitted to them", "grey"),
            ("test inputs", "green"),
            ("the line, weighted for the test inputs", "orange"),
        )
    ):
        draw.rect(14, 182 + 24 * i, 12, 12, kind)
        draw.text(34, 192 + 24 * i, words, "", "start")
    draw.save(name)


def softmax(name: str) -> None:
    draw = Drawing(470)
    x = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for i, (title, values, most, form) in enumerate(
        (
            ("logits", x, 2.2, "{:.0f}"),
            ("logits + 100", x + 100, 110, "{:.0f}"),
            ("softmax of either", x.softmax(-1), 0.7, "{:.2f}"),
        )
    ):
        base = 150 * i + (118 if i else 88)  # room below for what is negative
        draw.text(8, 150 * i + 66, title, "strong", "start")
        for j, value in enumerate(values.tolist()):
            x0 = 160 + 58 * j
            tall = max((92 if i else 58) * abs(value) / most, 1.5)
            top, kind = (base, "orange") if value < 0 else (base - tall, "blue")
            draw.rect(x0, top, 46, tall, kind)
            draw.text(x0 + 23, 150 * i + 136, form.format(value).replace("-", "−"), "soft")
    draw.text(200, 462, "only differences count: +1 is a factor of e = 2.72", "soft")
    draw.save(name)


MAP_ALPHA = 0.6  # of a map's fullest patch: what lies below stays visible


def over_picture(
    draw: Drawing,
    x: float,
    y: float,
    edge: float,
    weights: Tensor,
    most: float,
    mark: int | None = None,
) -> None:
    """The scene, paler, its patches coloured by weight, the strongest at `most`; one framed."""
    side = weights.shape[0]
    colour = torch.zeros(side, side, 4)
    colour[..., :3] = torch.tensor([208, 0, 80])
    colour[..., 3] = 255 * MAP_ALPHA * (weights / most).clamp(0, 1)
    plain = scene(96)
    pale = Image.blend(plain.convert("L").convert("RGB"), plain, 0.4)
    draw.picture(x, y, edge, Image.blend(pale, Image.new("RGB", pale.size, "white"), 0.25))
    draw.picture(x, y, edge, Image.fromarray(colour.round().byte().numpy()))
    if mark is None:
        return
    cell = edge / side
    row, column = divmod(mark, side)
    draw.parts.append(
        f'<rect x="{x + cell * column:.1f}" y="{y + cell * row:.1f}" width="{cell:.1f}" '
        f'height="{cell:.1f}" fill="none" class="s-green" stroke-width="2.5"/>'
    )


def map_scale(draw: Drawing, y: float, most: str, words: str) -> None:
    """The scale of `over_picture`'s colour, and what it is of."""
    for i in range(15):
        draw.parts.append(f'<rect x="{12 + 8 * i}" y="{y}" width="8" height="12" fill="#ccc"/>')
        draw.parts.append(
            f'<rect x="{12 + 8 * i}" y="{y}" width="8" height="12" fill="#d00050" '
            f'fill-opacity="{MAP_ALPHA * i / 14:.2f}"/>'
        )
    draw.text(12, y + 25, "0", "small soft", "start")
    draw.text(132, y + 25, most, "small soft", "end")
    for i, line in enumerate(words.split("\n")):
        draw.text(144, y + 11 + 17 * i, line, "small soft", "start")


def attention(name: str) -> None:
    m = mini()
    with paliglass.trace(m) as t:
        m.caption(SCENE)
    side = m.model.config.vision_config.patches_per_side
    mark = side // 4 * (side + 1)
    weights = t.pictures[0].attention(-1)[:, mark].unflatten(-1, (side, side))
    most = weights.max().item()
    draw = Drawing(466)
    for head in range(4):
        x, y = 12 + 192 * (head % 2), 26 + 212 * (head // 2)
        draw.text(x + 92, y - 8, f"head {head}", "strong")
        over_picture(draw, x, y, 184, weights[head], most, mark)
    map_scale(draw, 432, f"{100 * most:.0f} %", "of a head's attention, in all 100 %")
    draw.save(name)


def feed_forward(name: str) -> None:
    draw = Drawing(438)
    xs = torch.linspace(-3, 3, 100)
    gelu = torch.nn.functional.gelu(xs, approximate="tanh")
    draw.plot(
        30,
        12,
        340,
        170,
        (-3, 3, -0.3, 3),
        (xs.tolist(), xs.relu().tolist(), "s-grey"),
        (xs.tolist(), gelu.tolist(), "s-blue"),
    )
    draw.text(90, 50, "GELU", "blue", "start")
    draw.text(90, 70, "ReLU", "soft", "start")
    for y, words in ((17, "3"), (170, "0"), (237, "3"), (321, "0"), (405, "−3")):
        draw.text(26, y, words, "soft", "end")
    draw.text(200, 200, "x from −3 to 3", "soft")
    place = draw.plot(30, 232, 340, 170, (-3, 3, -3, 3))
    for up, kind, at in (
        (-1, "orange", (1, -1.9)),
        (0, "green", (2.95, 0.35)),
        (1, "blue", (1, 2)),
    ):
        points = zip(xs.tolist(), (gelu * up).tolist(), strict=True)
        draw.curve([place(a, b) for a, b in points], f"s-{kind}")
        x, y = place(*at)
        draw.text(x, y + 4, f"up = {up:g}".replace("-", "−"), kind, "end")
    draw.text(200, 428, "gate from −3 to 3: what passes of up", "soft")
    draw.save(name)


def vit(name: str) -> None:
    m = mini()
    with paliglass.trace(m) as t:
        m.caption(SCENE)
    picture, side = t.pictures[0], m.model.config.vision_config.patches_per_side
    mark = int(0.45 * side) * side + int(0.3 * side)  # on the tractor
    draw = Drawing(466)
    shown = [picture.names[i] for i in (0, 2, 4, 6)]
    for i, layer in enumerate(shown):
        hidden = picture.hidden(layer)
        unit = torch.nn.functional.normalize(hidden - hidden.mean(0), dim=-1)
        title = "patches" if not i else f"after layer {layer.split('.')[-1]}"
        x, y = 12 + 192 * (i % 2), 26 + 212 * (i // 2)
        draw.text(x + 92, y - 8, title, "strong")
        over_picture(draw, x, y, 184, (unit @ unit[mark]).reshape(side, side), 1, mark)
    map_scale(draw, 432, "1", "cosine with the framed patch\n(below 0: as 0)")
    draw.save(name)


def _cosines(texts: Sequence[str]) -> tuple[Tensor, float]:
    """How alike mini-dual finds the crops and the texts, 5 × the number of texts; its scale."""
    model, processor = load_contrastive("mini-dual", device="cpu", dtype="float32")
    with torch.no_grad():
        pictures = model.embed_images(torch.stack([processor.pixels(c) for c in _crops()]))
        return pictures @ model.embed_texts(**processor.words(texts)).T, model.scale.item()


TEXTS = ("a tractor", "a doughnut", "a yellow star", "a red circle")


def _crops() -> list[Image.Image]:
    """A picture for each of the texts, and one that none of them describes."""
    circle = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(circle).ellipse((60, 60, 190, 190), fill="red")
    whole = Image.open(SCENE).convert("RGB")
    w, h = whole.size
    boxes = [
        (0.02, 0.18, 0.52, 0.55),
        (0.62, 0.05, 0.98, 0.38),
        (0.3, 0.5, 0.7, 0.85),
        (0.6, 0.6, 1, 1),
    ]
    tractor, doughnut, star, nothing = (
        whole.crop((int(a * w), int(b * h), int(c * w), int(d * h))) for a, b, c, d in boxes
    )
    return [tractor, doughnut, star, circle, nothing]


def _matrix(draw: Drawing, left: float, top: float, values: Tensor, row: float = 56) -> None:
    for i, numbers in enumerate(values.tolist()):
        for j, value in enumerate(numbers):
            place = left + 66 * j, top + row * i, 64, row - 2
            draw.rect(*place, "faint")
            draw.rect(*place, "blue" if value > 0 else "orange", min(abs(value), 1) * 0.65)
            words = f"{value:.2f}".replace("-", "−")
            draw.text(place[0] + 32, place[1] + row / 2 + 4, words, "strong" if i == j else "")


def clip(name: str) -> None:
    draw = Drawing(506)
    draw.text(232, 18, "cosines: the diagonal is to lead", "strong")
    for i, (crop, text) in enumerate(zip(_crops()[:4], TEXTS, strict=True)):
        draw.picture(20, 82 + 56 * i, 50, crop.resize((50, 50)))
        draw.text(84, 112 + 56 * i, f"I{'₁₂₃₄'[i]}", "strong")
        draw.text(132 + 66 * i, 42, f"T{'₁₂₃₄'[i]}", "strong")
        first, _, last = text.rpartition(" ")
        draw.text(132 + 66 * i, 58, first, "soft small")
        draw.text(132 + 66 * i, 71, last, "soft small")
    _matrix(draw, 100, 80, _cosines(TEXTS)[0][:4])
    draw.text(232, 322, "mini-dual on four pictures and four texts", "soft small")
    question = "cross-entropy, right answer 1"
    for i, words in enumerate(
        (
            f"row 1: which text is I₁'s?\n{question}",
            f"column 1: which picture is T₁'s?\n{question}",
            "loss = mean of both\nover all rows and columns",
        )
    ):
        draw.label(20, 338 + 54 * i, 346, 46, words, "faint")
    draw.save(name)


def siglip(name: str) -> None:
    """The fourth picture is empty; the scale is mini-dual's, the bias SigLIP's at its start."""
    crops = _crops()
    kept = [0, 1, 2, 4]
    cosines, scale = _cosines(TEXTS)
    logits = scale * cosines[kept]
    draw = Drawing(524)
    for top, title, values in (
        (0, "softmax of each row: sums to 1", logits.softmax(-1)),
        (238, "sigmoid of each cell: on its own", (logits - 10).sigmoid()),
    ):
        draw.text(227, top + 18, title, "strong")
        _matrix(draw, 96, top + 46, values, 46)
        for i, crop in enumerate(kept):
            draw.picture(50, top + 47 + 46 * i, 40, crops[crop].resize((40, 40)))
            draw.text(128 + 66 * i, top + 38, TEXTS[i].rpartition(" ")[2], "soft small")
    draw.text(200, 490, "the fourth picture is background, which no text describes:", "soft small")
    draw.text(200, 508, "softmax shares out its 1, the sigmoid may say no to all", "soft small")
    draw.save(name)


def merge(name: str) -> None:
    m = mini()
    with paliglass.trace(m, layers=[0]) as t:
        m.caption(SCENE)
    row = t.rows[0]
    n = row.passes[0]
    norms = row.norms["inputs_embeds"][:n].tolist()
    kinds = row.is_picture[:n].tolist()
    draw = Drawing(262)
    each, tall = 360 / n, 130 / max(norms)
    for i, (norm, is_picture) in enumerate(zip(norms, kinds, strict=True)):
        kind = "blue" if is_picture else "green"
        draw.rect(32 + each * i, 166 - norm * tall, each - 0.8, norm * tall, kind)
    draw.text(200, 20, "length of each vector that enters the decoder (mini)", "soft")
    for length in (0, 20, 40, 60):
        if length * tall < 134:
            draw.text(28, 170 - length * tall, str(length), "small soft", "end")
    patches = m.model.config.num_image_tokens
    words = " ".join(
        _spelled(m.processor.tokenizer.id_to_token(i), "") for i in row.ids[patches:n].tolist()
    )
    draw.text(32, 186, f"{patches} patches", "blue", "start")
    draw.text(392, 186, words, "green", "end")
    draw.arrow(130, 218, 130, 194)
    draw.arrow(340, 218, 340, 194)
    draw.label(32, 220, 190, 30, "multi_modal_projector", "faint")
    draw.label(230, 220, 166, 30, "embed_tokens · √D", "faint")
    draw.save(name)


def tokens(name: str) -> None:
    m = mini()
    ids = m.processor.encode_prefix("detect tractor")[m.processor.num_image_tokens - 2 :]
    answer = m.processor.encode_suffix(str(m.generate(SCENE, "detect tractor")))
    draw = Drawing(470)
    spelled = [
        m.processor.tokenizer.id_to_token(i).replace("▁", "").replace("\n", "\\n")
        for i in (*ids, *answer)
    ]
    for top, title, some, words in (
        (30, "prompt", ids, spelled[: len(ids)]),
        (106, "answer", answer, spelled[len(ids) :]),
    ):
        x, y = 8.0, float(top)
        draw.text(x, y - 10, title, "soft", "start")
        for token, word in zip(some, words, strict=True):
            wide = 8 + 8.2 * len(word)
            if x + wide > 396:
                x, y = 8.0, y + 54
            kind = "blue" if word == "<image>" else "green" if title == "prompt" else "orange"
            draw.rect(x, y, wide, 26, kind, 0.45)
            draw.text(x + wide / 2, y + 17, word, "mono small")
            draw.text(x + wide / 2, y + 40, str(token), "soft small")
            x += wide + 4
    edge, left, top = 200.0, 150.0, 254.0
    [found] = m.detect(SCENE, "tractor")
    whole = Image.open(SCENE)
    draw.picture(left, top, edge, scene(m.model.config.vision_config.image_size))
    for side, place in zip(
        ("x0", "y0", "x1", "y1"),
        (e / s * edge for e, s in zip(found.box, (*whole.size, *whole.size), strict=True)),
        strict=True,
    ):
        if side[0] == "x":
            line = f"M{left + place:.0f} {top - 6}v{edge + 6:.0f}"
            draw.text(left + place, top - 10, side, "mono small")
        else:
            line = f"M{left - 6} {top + place:.0f}h{edge + 6:.0f}"
            draw.text(left - 10, top + place + 4, side, "mono small", "end")
        draw.parts.append(f'<path class="s-orange" stroke-width="2.5" d="{line}"/>')
    for i, words in enumerate(
        ("a box is four", "tokens, y0 x0 y1", "x1, each in", "1023rds of the", "picture")
    ):
        draw.text(8, 308 + 18 * i, words, "soft", "start")
    draw.save(name)


def rope(name: str) -> None:
    draw = Drawing(0)
    positions = torch.arange(0, 6)[None]
    cos, sin = rotary_cos_sin(positions, 16, 10000.0, torch.float32)
    pair = apply_rotary(torch.tensor([1.0] * 8 + [0.0] * 8).expand(1, 1, 6, 16), cos, sin)[0, 0]
    draw.text(200, 18, "three pairs of channels at positions 0 … 5", "soft")
    for i in range(3):
        x, y, radius = 70 + 130 * i, 92, 46
        draw.parts.append(f'<circle class="line" cx="{x}" cy="{y}" r="{radius}"/>')
        for p in range(6):
            a, b = pair[p, i].item(), pair[p, i + 8].item()
            draw.parts.append(
                f'<path class="s-blue" stroke-opacity="{1 - 0.14 * p:.2f}" stroke-width="2.5" '
                f'd="M{x} {y}L{x + radius * a:.1f} {y - radius * b:.1f}"/>'
            )
            if i < 2 or p in (0, 5):  # the slowest stand too close for a number each
                draw.text(x + 1.24 * radius * a, y + 4 - 1.24 * radius * b, str(p), "small soft")
        draw.text(x, 172, ("1 radian a token", "0.32", "0.1")[i], "soft small")
    m = mini()
    with paliglass.trace(m) as t:
        m.caption(SCENE)
    row, side = t.rows[0], m.model.config.vision_config.patches_per_side
    draw.text(200, 202, "mean score of two patches by their distance in tokens", "soft")
    apart = list(range(4 * side + 1))
    curves = []
    for layer, kind in ((1, "s-blue"), (2, "s-orange")):
        query, key = row.query(layer)[:, row.is_picture], row.key(layer)[:, row.is_picture]
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).mean(0)
        curves.append((apart, [scores.diagonal(-d).mean().item() for d in apart], kind))
    values = [score for _, scores, _ in curves for score in scores]
    place = draw.plot(36, 212, 350, 130, (0, 4 * side, min(values), max(values)), *curves)
    for d in range(0, 4 * side + 1, side):
        x, y = place(d, min(values))
        draw.text(x, y + 15, str(d), "small soft")
        draw.parts.append(f'<path class="line" stroke-dasharray="2 4" d="M{x:.1f} 212V{y:.1f}"/>')
    for score in (0, 4):
        draw.text(30, place(0, score)[1] + 4, str(score), "small soft", "end")
    for i, (words, kind) in enumerate((("layer 1", "blue"), ("layer 2", "orange"))):
        draw.rect(36 + 70 * i, 368, 11, 11, kind)
        draw.text(52 + 70 * i, 378, words, "small", "start")
    draw.text(180, 378, f"of mini; a row has {side} patches", "small soft", "start")
    key = row.key(0)[0][:, :24]
    most = float(key.abs().quantile(0.97))
    wide = 380 / len(key)
    draw.text(200, 406, "mini's keys after RoPE: a column is a token, a row a", "soft")
    draw.text(200, 423, "channel; the upper ones turn fastest", "soft")
    draw.heat(10, 432, key.T.contiguous(), wide, most=most)
    draw.height = 432 + 24 * wide + 44
    draw.legend(140, draw.height - 34, f"+{most:.0f}", f"−{most:.0f}")
    draw.save(name)


def gqa(name: str) -> None:
    draw = Drawing(412)
    text = PRESETS["paligemma-3b-224"].text_config
    for i, (title, heads) in enumerate((("MHA", 8), ("GQA: Gemma 2 2B", 4), ("MQA: Gemma 2B", 1))):
        left, top = 8, 124.0 * i
        draw.text(left + 98, top + 18, title, "strong")
        for q in range(8):
            draw.label(left + 25 * q, top + 28, 21, 24, "q", "faint")
            k = q * heads // 8
            x = left + (k + 0.5) * 200 / heads - 2
            draw.parts.append(
                f'<path class="line" d="M{left + 25 * q + 10.5} {top + 52}L{x:.1f} {top + 84}"/>'
            )
        for k in range(heads):
            x = left + (k + 0.5) * 200 / heads - 2
            draw.rect(x - 10.5, top + 84, 21, 24, "orange")
            draw.text(x, top + 101, "k", "white strong")
        size = 2 * text.num_hidden_layers * heads * text.head_dim * 2 / 1024
        draw.rect(226, top + 46, 168, 18, "faint")
        draw.rect(226, top + 46, 168 * heads / 8, 18, "orange")
        draw.text(310, top + 84, f"{size:.0f} KiB a token", "soft")
    draw.text(200, 386, "left: which key head a query head reads; right: keys and", "soft small")
    draw.text(200, 403, "values in the cache, were Gemma 2B built so (bfloat16)", "soft small")
    draw.save(name)


def masks(name: str) -> None:
    words = ["▦", "▦", "▦", "▦", "<bos>", "what", "\\n", "a", "dog", "<eos>"]
    draw = Drawing(700)
    shown = (
        ("full", 10, "the vision\ntower"),
        ("causal", 0, "a plain lan-\nguage model"),
        ("prefix-LM", 7, "PaliGemma"),
    )
    for i, (title, given, where) in enumerate(shown):
        types = torch.tensor([[0] * given + [1] * (10 - given)])
        mask = prefix_lm_mask(types, torch.ones(1, 10))[0, 0]
        left, top, cell = 166, 10 + 222 * i, 20
        draw.text(8, top + 90, title, "strong", "start")
        for line, part in enumerate(where.split("\n")):
            draw.text(8, top + 110 + 17 * line, part, "soft", "start")
        for row in range(10):
            draw.text(left - 8, top + row * cell + 14, words[row], "mono small soft", "end")
            for column in range(10):
                kind = "faint"
                if mask[row, column]:
                    kind = "blue" if row < 7 or i != 2 else "orange"
                draw.rect(left + column * cell, top + row * cell, cell - 1.5, cell - 1.5, kind)
    draw.text(200, 686, "a row looks at the columns that are filled", "soft")
    draw.save(name)


def cache(name: str) -> None:
    m = mini()
    with paliglass.trace(m) as t:
        m.caption(SCENE)
    passes = t.rows[0].passes
    draw = Drawing(432)
    steps = range(1, len(passes) + 1)
    without = [sum(sum(passes[:i]) for i in range(1, step + 1)) for step in steps]
    kept = [sum(passes[:step]) for step in steps]
    each, most = 380 / len(passes), without[-1]
    for top, title, totals in ((26, "without a cache", without), (228, "with one", kept)):
        draw.text(200, top - 8, title, "strong")
        for i, total in enumerate(totals):
            x, tall = 10 + each * i, 150 * total / most
            draw.rect(x, top + 166 - tall, each - 3, tall, "blue" if not i else "orange")
            draw.text(x + each / 2 - 1.5, top + 161 - tall, str(total), "small soft")
    draw.text(200, 408, "tokens computed up to each word of mini's caption;", "soft")
    draw.text(200, 426, "blue: the prompt and the first word", "soft")
    draw.save(name)


def _spelled(token: str, blank: str = "▁") -> str:
    """A token as it can be read. In the vocabulary a blank is ▁."""
    return token.replace("\n", "\\n").replace("▁", blank)


def sampling(name: str) -> None:
    """Of all steps of an answer the one at which mini was least sure."""
    m = mini()
    with paliglass.trace(m) as t:
        m.generate(SCENE, "detect tractor")
    every = t.rows[0].logits(t.rows[0].answer)
    step = int(every.softmax(-1).max(-1).values.argmin())
    logits = every[step]
    best = logits.topk(6)
    words = [_spelled(m.processor.tokenizer.id_to_token(i)) for i in best.indices.tolist()]
    draw = Drawing(588)
    for i, temperature in enumerate((0.5, 1.0, 2.0)):
        top = 18 + 178 * i
        draw.text(230, top, f"temperature {temperature:g}", "strong")
        probabilities = (logits / temperature).softmax(-1)
        shares = probabilities[best.indices].tolist()
        reached = 0.0
        for j, (word, share) in enumerate(zip(words, shares, strict=True)):
            y = top + 10 + 24 * j
            draw.text(90, y + 15, word, "small mono", "end")
            draw.rect(98, y, 240, 19, "faint")
            draw.rect(98, y, max(240 * share, 0.6), 19, "blue" if reached < 0.9 else "grey")
            draw.text(384, y + 15, f"{share:.2f}", "small soft", "end")
            reached += share
    draw.text(
        200, 554, f"mini's answer to `detect tractor`: token {step + 1}, the least sure", "soft"
    )
    draw.text(200, 574, "of its answer; blue is what top-p 0.9 keeps", "soft")
    draw.save(name)


def weight_tying(name: str) -> None:
    draw = Drawing(284)
    shown = [
        ("mini", None),
        ("PaliGemma 3B", "paligemma-3b-224"),
        ("PaliGemma 2 3B", "paligemma2-3b-224"),
        ("PaliGemma 2 10B", "paligemma2-10b-224"),
        ("PaliGemma 2 28B", "paligemma2-28b-224"),
    ]
    for i, (title, preset) in enumerate(shown):
        found = describe(PRESETS[preset]) if preset else describe(mini().model.config)
        count = found.parameters["embedding"]
        table, y = count / found.total_parameters, 28 + 46 * i
        words = f"{count / 1e6:,.0f} M" if count > 1e6 else f"{count / 1e6:.1f} M"
        draw.text(8, y, title, "", "start")
        draw.text(392, y, f"{words}, {100 * table:.0f} %", "soft", "end")
        draw.rect(8, y + 6, 300, 16, "faint")
        draw.rect(8, y + 6, 300 * table, 16, "green")
        draw.rect(310, y + 6, 300 * table, 16, "grey", 0.6)
    draw.text(8, 258, "green: the table, of all parameters;", "soft", "start")
    draw.text(8, 276, "grey: what a second one would add", "soft", "start")
    draw.save(name)


def decoder(name: str) -> None:
    m = mini()
    with paliglass.trace(m) as t:
        m.caption(SCENE)
    row = t.rows[0]
    draw = Drawing(40 + 30 * len(row.top()) + 56)
    spell = m.processor.tokenizer.id_to_token
    final = [best.id for [best] in row.top(1)]
    for layer in range(4):
        x = 8 + 97 * layer
        draw.text(x + 46, 20, f"layer {layer}", "soft")
        for i, [best] in enumerate(row.lens(layer)):
            y = 30 + 30 * i
            draw.rect(x, y, 93, 27, "faint")
            kind = "blue" if best.id == final[i] else "orange"
            draw.rect(x, y, 93, 27, kind, 0.55 * best.probability)
            draw.text(x + 46, y + 18, _spelled(spell(best.id), "") or "▁", "small")
    below = draw.height - 42
    draw.text(
        200, below + 14, "what mini would say after each layer, word by word; blue:", "soft small"
    )
    draw.text(200, below + 31, "what it says in the end; the stronger, the likelier", "soft small")
    draw.save(name)


def fine_tuning(name: str) -> None:
    """The factors that lesson 20 learns for one query projection of mini: its first 48 channels."""
    lesson: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("fine_tuning").parts:
            if part.kind == "python" and "learned" not in lesson:
                exec(part.text, lesson)
    lora = lesson["model"].language_model.model.layers[1].self_attn.q_proj
    weight = lora.linear.weight.detach()
    left, right = lora.B.detach()[:48], lora.A.detach()[:, :48]
    draw = Drawing(262)
    for x, y, values in (
        (22, 66, left),
        (48, 36, right),
        (48, 66, left @ right),
        (238, 66, weight[:48, :48]),
    ):
        draw.heat(x, y, values, 3.2, most=float(values.abs().quantile(0.98)))
    draw.text(28, 58, "B", "strong")
    draw.text(125, 28, "A", "strong")
    draw.text(125, 238, "B · A, the change", "strong")
    draw.text(315, 238, "W, frozen", "strong")
    draw.text(220, 148, "+", "strong")
    draw.text(200, 256, "48 × 48 weights of mini; each part on its own scale", "soft small")
    draw.save(name)


def int8(name: str) -> None:
    weight = mini().model.language_model.model.layers[0].mlp.down_proj.weight.detach()
    row = weight[7][:56]
    scale = weight[7].abs().max() / 127
    rounded = (row / scale).round() * scale
    draw = Drawing(330)
    most, half = row.abs().max().item(), scale.item() / 2
    for title, values, y, full in (
        ("56 weights of a row, in steps of 1/127 of its largest", rounded, 40, most),
        (f"what rounding loses, {most / half:.0f} × magnified", rounded - row, 184, half),
    ):
        draw.text(8, y - 18, title, "soft", "start")
        draw.parts.append(f'<path class="line" d="M8 {y + 52}H392"/>')
        for i, value in enumerate(values.tolist()):
            tall = 52 * abs(value) / full
            top = y + 52 - tall if value > 0 else y + 52
            draw.rect(8 + 6.85 * i, top, 5.6, max(tall, 0.4), "blue" if value > 0 else "orange")
    for y in (184, 288):
        draw.parts.append(f'<path class="line" stroke-dasharray="3 4" d="M8 {y}H392"/>')
    draw.text(392, 180, "half a step", "small soft", "end")
    error = ((rounded - row).norm() / row.norm()).item()
    draw.text(200, 318, f"error of the row: {100 * error:.1f} % of its length", "soft")
    draw.save(name)


def detection(name: str) -> None:
    m = mini()
    with paliglass.trace(m) as t:
        answer = m.generate(SCENE, "detect tractor")
    row = t.rows[0]
    first = m.processor.token_id("<loc0000>")
    shares = row.logits(row.answer)[:4].softmax(-1)[:, first : first + 1024]
    looks = row.picture_attention(positions=row.answer)[:4, 0]
    most = looks.max().item()
    [found] = parse_boxes(answer)
    box, edge = found.box, 180
    draw = Drawing(656)
    for i, (side, share) in enumerate(
        (("y0", box.y0), ("x0", box.x0), ("y1", box.y1), ("x1", box.x1))
    ):
        left, top = 12 + 196 * (i % 2), 28.0 + 286 * (i // 2)
        draw.text(left + edge / 2, top - 10, f"{side}: <loc{round(share * 1023):04}>", "mono")
        over_picture(draw, left, top, edge, looks[i], most)
        place = share * edge
        line = (
            f"M{left} {top + place}h{edge}" if side[0] == "y" else f"M{left + place} {top}v{edge}"
        )
        draw.parts.append(f'<path class="s-blue" stroke-width="2.5" d="{line}"/>')
        floor = top + edge + 64
        draw.parts.append(f'<path class="line" d="M{left} {floor}h{edge}"/>')
        bins = shares[i].reshape(64, 16).sum(-1)
        for j, part in enumerate(bins.tolist()):
            if part > 0.002:
                draw.rect(left + edge / 64 * j, floor - 52 * part, 2.8, 52 * part, "blue")
        draw.text(left, floor + 14, "0", "small soft", "start")
        draw.text(left + edge, floor + 14, "1023", "small soft", "end")
    map_scale(draw, 596, f"{100 * most:.0f} %", "of its attention\n(mean of heads and layers)")
    draw.text(12, 646, "bars: probability of the place, full height 1", "small soft", "start")
    draw.save(name)


def cost(name: str) -> None:
    draw = Drawing(300)
    flops, bandwidth = 990e12, 3.35e12
    left, top, wide, tall = 58, 24, 330, 220

    def place(intensity: float, reached: float) -> tuple[float, float]:
        x = left + wide * (math.log10(intensity) + 1) / 4.5
        return x, top + tall * (15.2 - math.log10(reached)) / 4

    draw.parts.append(f'<path class="line" d="M{left} {top}V{top + tall}H{left + wide}"/>')
    ridge = flops / bandwidth
    roof = [(0.1, 0.1 * bandwidth), (ridge, flops), (10**3.5, flops)]
    draw.curve([place(*point) for point in roof], "s-grey")
    config = PRESETS["paligemma-3b-224"]
    found = describe(config)
    text, tokens = config.text_config, config.num_image_tokens + 10
    each = 2 * (found.parameters["decoder"] - (2 * text.num_hidden_layers + 1) * text.hidden_size)
    heads = text.num_attention_heads * text.head_dim
    attention = 4 * tokens * heads * text.num_hidden_layers
    table = 2 * found.parameters["embedding"]
    read = 2 * (found.parameters["decoder"] + found.parameters["embedding"])
    kept = tokens * found.cache["bfloat16"]
    points = [("prefill", tokens * (each + attention), read, "blue")]
    points += [
        (
            f"one word, {rows} at once" if rows > 1 else "one word",
            rows * (each + attention + table),
            read + rows * kept,
            "orange",
        )
        for rows in (1, 8, 64)
    ]
    for title, operations, size, kind in points:
        intensity = operations / size
        x, y = place(intensity, min(flops, intensity * bandwidth))
        draw.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        left_of = x > 250  # no room to its right
        words = (
            (x - 10, y - 4, title, "small", "end")
            if left_of
            else (x + 10, y + 18, title, "small", "start")
        )
        draw.text(*words)
    for power in range(-1, 4):
        x, _ = place(10.0**power, 1e12)
        draw.text(x, top + tall + 18, f"{10.0**power:g}", "small soft")
    for power in (12, 13, 14, 15):
        _, y = place(1, 10.0**power)
        draw.text(left - 8, y + 4, f"{10 ** (power - 12)} T", "small soft", "end")
    draw.text(left + wide / 2, top + tall + 40, "operations per byte", "soft")
    draw.text(left + 10, top - 8, "operations a second (an H100, at best)", "soft", "start")
    draw.save(name)


def training(name: str) -> None:
    """The losses of lesson 24's four runs, each the mean of the last ten steps."""
    lesson: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("training").parts:
            if part.kind == "python" and "curves" not in lesson:
                exec(part.text, lesson)
    draw = Drawing(374, 344)
    kinds = ("grey", "orange", "blue", "green")
    lines = []
    for (words, losses), kind in zip(lesson["curves"].items(), kinds, strict=True):
        means = torch.tensor(losses).unfold(0, 10, 1).mean(1).tolist()
        lines.append((range(9, 9 + len(means)), means, f"s-{kind}"))
        y = 278 + 22 * len(lines)
        draw.rect(36, y - 10, 12, 12, kind)
        draw.text(56, y, words.replace("trained", "a trained tower"), "", "start")
    steps = len(losses)
    place = draw.plot(36, 28, 296, 216, (0, steps, 0, 2), *lines)
    for loss in (0, 1, 2):
        draw.text(28, place(0, loss)[1] + 4, str(loss), "small soft", "end")
    for step in (0, steps // 2, steps):
        draw.text(place(step, 0)[0], 262, str(step), "small soft")
    draw.text(36, 18, "loss, nats a word", "soft small", "start")
    draw.text(332, 278, "steps", "soft small", "end")
    draw.save(name)


def evaluation(name: str) -> None:
    """What lesson 25 measures on mini."""
    lesson: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("evaluation").parts:
            if part.kind == "python" and "scaled" not in lesson:
                exec(part.text, lesson)
    draw = Drawing(504, 344)
    draw.text(8, 18, "is there a red circle? right, of 32", "strong", "start")
    for i, (words, share) in enumerate(lesson["found"].items()):
        y = 32 + 28 * i
        draw.text(94, y + 15, words, "", "end")
        draw.rect(100, y, 200, 20, "faint")
        draw.rect(100, y, 200 * share, 20, "grey" if i else "blue")
        draw.text(336, y + 15, f"{share:.2f}", "soft", "end")
    draw.parts.append('<path class="line" stroke-dasharray="3 4" d="M200 28V116"/>')
    draw.text(200, 132, "a coin", "small soft")
    draw.text(8, 168, "what colour is it? right, by score", "strong", "start")
    place = draw.plot(32, 182, 296, 240, (0, 1, 0, 1), ((0.0, 1.0), (0.0, 1.0), "s-grey"))
    hits = lesson["rest"]
    for scores, kind in ((lesson["raw"], "orange"), (lesson["scaled"], "blue")):
        for score, share, count in lesson["bins"](scores, hits):
            x, y = place(score, share)
            size = 4 + 14 * (count / len(hits)) ** 0.5
            draw.parts.append(
                f'<circle class="{kind}" fill-opacity="0.8" cx="{x:.1f}" cy="{y:.1f}" '
                f'r="{size:.1f}"/>'
            )
    for at in (0, 1):
        draw.text(26, place(0, at)[1] + 4, str(at), "small soft", "end")
        draw.text(place(at, 0)[0], 438, str(at), "small soft")
    draw.text(180, 444, "score", "small soft")
    draw.text(40, 192, "share that is right", "small soft", "start")
    draw.text(198, 275, "as often as it says", "small soft", "end")
    for i, (words, kind) in enumerate((("raw scores", "orange"), ("after Platt scaling", "blue"))):
        draw.rect(32 + 130 * i, 456, 12, 12, kind)
        draw.text(50 + 130 * i, 466, words, "", "start")
    draw.text(
        8, 492, "the larger, the more answers: of 128 discs under noise", "small soft", "start"
    )
    draw.save(name)


def interpretability(name: str) -> None:
    """What lesson 26 measures on mini: the ablated heads, and the patched vectors."""
    lesson: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("interpretability").parts:
            if part.kind == "python" and "patched" not in lesson:
                exec(part.text, lesson)
    effect, attended = lesson["effect"], lesson["attended"]
    count, heads = effect.shape
    most, cell = effect.max().item(), 120 / heads
    below = 60 + cell * count
    draw = Drawing(below + 330, 344)
    for left, title, values, top in (
        (48, "lost without it", effect.clamp(min=0), most),
        (200, "attends to the picture", attended, 1.0),
    ):
        draw.text(left + 60, 20, title, "strong")
        draw.heat(left, 32, values, cell, most=top)
        draw.text(left + 60, below - 10, "heads", "soft small")
        draw.legend(left, below, f"{top:.1f}")
    for i in range(count):
        draw.text(43, 36 + cell * (i + 0.5), f"layer {i}", "small soft", "end")
    top = below + 68
    draw.text(8, top - 12, "how much of the answer moves", "strong", "start")
    curves = [
        (range(count + 1), values, kind)
        for values, kind in zip(lesson["patched"].values(), ("s-blue", "s-orange"), strict=True)
    ]
    place = draw.plot(32, top, 296, 150, (0, count, 0, 1.001), *curves)
    for at in (0, 1):
        draw.text(26, place(0, at)[1] + 4, str(at), "small soft", "end")
    for depth in range(count + 1):
        words = "input" if not depth else f"after {depth - 1}"
        anchor = "start" if not depth else "end" if depth == count else "middle"
        draw.text(place(depth, 0)[0], top + 168, words, "small soft", anchor)
    for i, (words, kind) in enumerate(
        (("the picture's vectors exchanged", "blue"), ("the last word's vector", "orange"))
    ):
        draw.rect(32, top + 190 + 22 * i, 12, 12, kind)
        draw.text(52, top + 200 + 22 * i, words, "", "start")
    draw.text(8, top + 250, "1: it names the other picture's colour", "small soft", "start")
    draw.save(name)


def serving(name: str) -> None:
    """Lesson 27's eight answers in three rows."""
    lengths = [3, 9, 2, 4, 7, 2, 5, 3]
    static = [
        (sum(max(lengths[j : j + 3]) for j in range(0, i - i % 3, 3)), i % 3) for i in range(8)
    ]
    running, free = [], [0, 0, 0]
    for length in lengths:  # each begins in the row that is free first
        row = free.index(min(free))
        running.append((free[row], row))
        free[row] += length
    draw = Drawing(286, 344)
    each = 332 / 21
    for top, title, starts in ((28, "static batches", static), (150, "a running batch", running)):
        steps = max(start + length for (start, _), length in zip(starts, lengths, strict=True))
        draw.text(6, top - 10, title, "strong", "start")
        draw.text(338, top - 10, f"{steps} steps", "soft", "end")
        for row in range(3):
            draw.rect(6, top + 28 * row, each * steps, 24, "faint")
        for i, ((start, row), length) in enumerate(zip(starts, lengths, strict=True)):
            kind = ("blue", "orange", "green")[i % 3]
            x, y = 6 + each * start, top + 28 * row
            draw.rect(x, y, each * length - 2, 24, kind, 0.6)
            draw.text(x + each * length / 2 - 1, y + 17, str(length))
    draw.text(6, 258, "a row each; the numbers: tokens of an answer;", "soft small", "start")
    draw.text(6, 274, "pale: nobody is served", "soft small", "start")
    draw.save(name)


def connectors(name: str) -> None:
    """Tokens of a 448-pixel picture by connector; a page of 4 : 1 cut into patches."""
    draw = Drawing(494, 344)
    draw.text(6, 18, "tokens of a picture of 448 × 448", "strong", "start")
    for i, (words, count) in enumerate(
        (
            ("linear, MLP", 1024),
            ("pixel shuffle, 2 × 2", 256),
            ("mean of 4 × 4", 64),
            ("Q-Former", 32),
            ("cross-attention", 0),
        )
    ):
        y = 30 + 28 * i
        draw.text(138, y + 15, words, "", "end")
        draw.rect(144, y, 156, 20, "faint")
        if count:
            draw.rect(144, y, 156 * count / 1024, 20, "blue")
        draw.text(338, y + 15, str(count), "soft", "end")

    def cut(x: float, y: float, w: float, h: float, columns: int, rows: int) -> None:
        draw.rect(x, y, w, h, "faint")
        lines = "".join(f"M{x + w * i / columns:.1f} {y}v{h}" for i in range(columns + 1))
        lines += "".join(f"M{x} {y + h * i / rows:.1f}h{w}" for i in range(rows + 1))
        draw.parts.append(f'<path class="s-blue" stroke-width="0.8" d="{lines}"/>')

    draw.text(6, 200, "a page of 1600 × 400, 256 patches at most", "strong", "start")
    draw.text(6, 222, "squashed to a square: 16 × 16", "soft", "start")
    cut(6, 230, 332, 83, 16, 16)
    draw.text(6, 336, "NaFlex: 32 × 8", "soft", "start")
    cut(6, 344, 332, 83, 32, 8)
    draw.text(6, 450, "4 tiles and the whole, 16 × 16 each: 1280", "soft", "start")
    draw.text(6, 478, "the ways of PaliGemma, SigLIP 2 and Gemma 3", "soft small", "start")
    draw.save(name)


def zero_shot(name: str) -> None:
    """Lesson 29's matrix: mini-dual's cosines of 24 drawings and 24 descriptions."""
    lesson: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("zero_shot").parts:
            if part.kind == "python" and "names" not in lesson:
                exec(part.text, lesson)
    cosines, names = lesson["cosines"], lesson["names"]
    draw = Drawing(398, 344)
    cell, left, top = 11, 72, 32
    draw.text(left + 132, 18, "descriptions", "strong")
    draw.heat(left, top, cosines, cell, most=1)
    for i, shape in enumerate(("circles", "squares", "triangles")):
        draw.text(left - 8, top + 88 * i + 48, shape, "", "end")
        draw.text(left + 88 * i + 44, top + 282, shape, "soft")
    for i in (8, 16):
        at = cell * i - 0.5
        draw.parts.append(f'<path class="line" d="M{left} {top + at}h264M{left + at} {top}v264"/>')
    draw.legend(left, 332, "+1", "−1")
    draw.text(204, 343, "cosine", "soft small", "start")
    words = f"rows: drawings; of each shape {len(names) // 3} colours in turn"
    draw.text(6, 382, words, "soft small", "start")
    draw.save(name)


def after(name: str) -> None:
    """What six layers keep of 32 768 tokens: each layer a bar, whole where it is global."""
    draw = Drawing(364, 344)
    n = 32768
    for i, (title, kept) in enumerate(
        (
            ("Gemma: all global", [n] * 6),
            ("Gemma 2: 1 : 1, window 4096", [4096, n] * 3),
            ("Gemma 3: 5 : 1, window 1024", [1024] * 5 + [n]),
        )
    ):
        top = 28 + 104 * i
        draw.text(6, top - 8, title, "strong", "start")
        draw.text(338, top - 8, f"{sum(kept) / (6 * n):.0%}", "soft", "end")
        for layer, count in enumerate(kept):
            y = top + 11 * layer
            draw.rect(6, y, 332, 9, "faint")
            draw.rect(
                338 - 332 * count / n, y, 332 * count / n, 9, "blue" if count == n else "orange"
            )
    draw.text(
        6, 338, "blue: a global layer; orange: a local one, the latest", "soft small", "start"
    )
    draw.text(6, 355, f"tokens alone. Share: of {n:,} tokens' keys", "soft small", "start")
    draw.save(name)


def inference(name: str) -> None:
    """mini's file of weights: the header's length, the header, and whose the numbers are."""
    path = Path(paliglass.__file__).parent / "mini" / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    parts = {"vision tower": 0, "projector": 0, "words": 0, "decoder": 0}
    for key, one in header.items():
        start, end = one["data_offsets"]
        part = "words" if "embed_tokens" in key else "decoder"
        if key.startswith("vision"):
            part = "vision tower"
        parts["projector" if "projector" in key else part] += end - start
    draw = Drawing(372, 344)
    draw.label(6, 10, 332, 44, f"8 bytes\nhow long the header is: {length:,}", "faint")
    lines = (
        f"{length:,} bytes of JSON\nof each of {len(header)} tensors its dtype,\nshape and place"
    )
    draw.label(6, 64, 332, 64, lines)
    draw.label(
        6, 138, 332, 44, f"{len(data) - 8 - length:,} bytes\nnumbers, and nothing else", "faint"
    )
    draw.text(6, 214, "whose they are", "strong", "start")
    total = sum(parts.values())
    for i, ((words, size), kind) in enumerate(
        zip(parts.items(), ("blue", "blue", "green", "grey"), strict=True)
    ):
        y = 226 + 30 * i
        draw.text(98, y + 15, words, "", "end")
        draw.rect(106, y, 184, 20, "faint")
        draw.rect(106, y, max(184 * size / total, 1), 20, kind)
        draw.text(338, y + 15, f"{size / total:.0%}", "soft", "end")
    draw.text(
        6, 364, "mini's model.safetensors; the output layer is the words", "soft small", "start"
    )
    draw.save(name)


def masks_and_reading(name: str) -> None:
    """Lesson 32's four masks, and what mini's codec makes of their sixteen codes."""
    lesson: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for part in find("masks_and_reading").parts:
            if part.kind == "python" and "back" not in lesson:
                exec(part.text, lesson)
    draw = Drawing(244, 344)
    for i, (title, mask) in enumerate(lesson["masks"].items()):
        x, back = 12 + 82 * i, lesson["back"][title]
        draw.heat(x, 12, mask.float(), 1.15, most=1)
        draw.heat(x, 126, back.float(), 1.15, most=1)
        draw.text(x + 37, 106, title, "small")
        draw.text(x + 37, 218, f"IoU {lesson['iou'](mask, back):.2f}", "small soft")
    draw.text(172, 240, "above: 4096 pixels; below: after 16 tokens", "soft small")
    draw.save(name)


def kernels(name: str) -> None:
    draw = Drawing(424)
    draw.text(8, 20, "one of 16 lanes of vpdpbusd", "strong", "start")
    rows = (
        ("weight + 128", (133, 125, 128, 255), "orange"),
        ("token", (10, -20, 7, 1), "blue"),
    )
    for i, (words, values, kind) in enumerate(rows):
        y = 34 + 42 * i
        draw.text(8, y + 20, words, "small soft", "start")
        for j, value in enumerate(values):
            draw.rect(108 + 72 * j, y, 64, 30, kind, 0.22)
            draw.text(140 + 72 * j, y + 20, f"{value}".replace("-", "−"))
    draw.text(8, 144, "products", "small soft", "start")
    for j, (w, x) in enumerate(zip(rows[0][1], rows[1][1], strict=True)):
        draw.text(140 + 72 * j, 144, f"{w * x}".replace("-", "−"))
    total = sum(w * x for w, x in zip(rows[0][1], rows[1][1], strict=True))
    draw.text(
        8, 174, f"256 − {-total} = {256 + total}: the sum began at −128 · Σ token", "", "start"
    )

    group = mini().model.language_model.model.layers[1].mlp.down_proj.weight.detach()[7, :32]
    codes = torch.tensor(CODES, dtype=torch.float32)
    scale = group.abs().max() / codes.abs().max()
    places = (group[:, None] / scale - codes).abs().argmin(1)
    draw.text(8, 222, "32 weights, and the 16 values of their group", "strong", "start")
    zero, full = 318, 80 / codes.abs().max().item()
    for code in CODES:
        y = zero - full * code
        draw.parts.append(f'<path class="line" stroke-opacity="0.45" d="M8 {y:.1f}H392"/>')
    for i, (value, place) in enumerate(zip((group / scale).tolist(), places.tolist(), strict=True)):
        x = 8 + 12 * i
        tall = full * abs(value)
        draw.rect(x + 1, zero - tall if value > 0 else zero, 9, max(tall, 0.5), "orange", 0.45)
        draw.rect(x + 1, zero - full * CODES[place] - 1.5, 9, 3, "blue")
    draw.text(8, 418, "bars: the weights; blue: what is stored", "small soft", "start")
    draw.save(name)


FIGURES: dict[str, Callable[[str], None]] = {
    "01_architecture": architecture,
    "02_patches": patches,
    "03_positions": positions,
    "04_norms": norms,
    "05_softmax": softmax,
    "06_attention": attention,
    "07_feed_forward": feed_forward,
    "08_vit": vit,
    "09_clip": clip,
    "10_siglip": siglip,
    "11_merge": merge,
    "12_tokens": tokens,
    "13_rope": rope,
    "14_gqa": gqa,
    "15_masks": masks,
    "16_cache": cache,
    "17_sampling": sampling,
    "18_weight_tying": weight_tying,
    "19_decoder": decoder,
    "20_fine_tuning": fine_tuning,
    "21_int8": int8,
    "22_detection": detection,
    "23_cost": cost,
    "24_training": training,
    "25_evaluation": evaluation,
    "26_interpretability": interpretability,
    "27_serving": serving,
    "28_connectors": connectors,
    "29_zero_shot": zero_shot,
    "30_after": after,
    "31_inference": inference,
    "32_masks_and_reading": masks_and_reading,
    "33_covariate_shift": covariate_shift,
    "34_kernels": kernels,
}


def main(chosen: Sequence[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        if not chosen or name[:2] in chosen:
            draw(name)
            print(f"{FOLDER.name}/{name}.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
