"""From a scene to prompts and answers, in PaliGemma's own syntax.

Every answer follows one fixed grammar, so that there is exactly one right text for a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from workshop.world.concepts import COLOURS, CONCEPTS, SHAPES, plural_of, with_article
from workshop.world.scenes import Box, Scene, SceneObject
from workshop.world.splits import RESERVED_SHAPES

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = [
    "Example",
    "caption",
    "detection",
    "examples",
    "location_tokens",
    "segmentation",
    "token_box",
]

_NUMBERS = ("no", "one", "two", "three", "four")
_CONCEPT_NAMES = tuple(CONCEPTS)


@dataclass(frozen=True)
class Example:
    """What is asked and what is right; the prefix carries no newline (the processor adds it)."""

    prefix: str
    suffix: str


def examples(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    codec: MaskCodec | None = None,
    mixture: Mapping[str, float] = MappingProxyType({}),
) -> list[Example]:
    """`count` different prompts about a scene, of mixed kinds; `segment` only with a codec.

    mixture: how much more often than usual a task is asked, by the prompt's first word.
    """
    texts = any(thing.kind == "word" for thing in scene.objects)
    makers: tuple[tuple[str, float, Callable[[Scene, np.random.Generator], Example | None]], ...]
    makers = (
        ("caption", 1.0, _caption),
        ("detect", 1.2, _detect),
        ("ocr", 1.6 if texts else 0.05, _ocr),
        ("answer", 0.4, _how_many),
        ("answer", 0.4, _what),
        ("answer", 0.5, _is_there),
        ("answer", 0.4, _what_colour),
        ("answer", 0.5, _where),
        ("answer", 0.8, _what_digit),
        *((("segment", 1.6, partial(_segment, codec=codec)),) if codec else ()),
    )
    weights = np.cumsum([weight * mixture.get(task, 1.0) for task, weight, _ in makers])
    found: dict[str, Example] = {}
    while len(found) < count:
        maker = makers[int(np.searchsorted(weights, rng.random() * weights[-1]))][-1]
        example = maker(scene, rng)
        if example is not None:
            found.setdefault(example.prefix, example)
    return list(found.values())


def caption(scene: Scene) -> str:
    """The scene in words, left to right: "two dogs, an apple and the word STOP"."""
    phrases: list[str] = []
    for name, group in _grouped(scene).items():
        if group[0].kind in ("word", "digit"):
            phrases.append(f"the {group[0].kind} {name}")
        elif len(group) == 1:
            phrases.append(with_article(name))
        else:
            phrases.append(f"{_NUMBERS[len(group)]} {plural_of(name)}")
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def detection(scene: Scene, labels: list[str]) -> str:
    """Where the labels are: `<locY0><locX0><locY1><locX1> label ; …`.

    Labels in the order asked, instances of one label from left to right; a label that is not
    there gives nothing, and so does a picture with none of them.
    """
    size = scene.image.shape[0]
    groups = _grouped(scene)
    return " ; ".join(
        f"{location_tokens(thing.box, size)} {label}"
        for label in labels
        for thing in groups.get(label, ())
    )


def segmentation(scene: Scene, label: str, codec: MaskCodec) -> str:
    """The outlines of a label: `<loc>`×4 `<seg>`×16 ` label`, ` ; ` between instances.

    In the order of `detection`; nothing where the label is absent. A mask is cropped by the box
    that its own location tokens stand for, which is the one it will be pasted into.
    """
    import torch

    from paliglass.tasks.masks import crop_mask

    size = scene.image.shape[0]
    things = _grouped(scene).get(label)
    if not things:
        return ""
    crops = [crop_mask(scene.mask(thing), token_box(thing.box, size)) for thing in things]
    codes = codec.encode(torch.from_numpy(np.stack(crops))).tolist()
    return " ; ".join(
        location_tokens(thing.box, size) + "".join(f"<seg{code:03d}>" for code in row) + f" {label}"
        for thing, row in zip(things, codes, strict=True)
    )


def token_box(box: Box, size: int) -> tuple[float, float, float, float]:
    """The box that a box's location tokens stand for: x0, y0, x1, y1 in pixels (loc / 1023)."""
    x0, y0, x1, y1 = (_bin(edge, size) / 1023 * size for edge in box)
    return x0, y0, x1, y1


def location_tokens(box: Box, size: int) -> str:
    """A box as four location tokens, y before x: `<loc0256><loc0000><loc0767><loc0512>`.

    loc = round(v · 1023), where v = edge / size rounded to the nearest 1/64: a small model then
    has 65 location tokens to learn instead of 1024, at the price of ±0.8 % of the side.
    """
    x0, y0, x1, y1 = box
    return "".join(f"<loc{_bin(edge, size):04d}>" for edge in (y0, x0, y1, x1))


def _bin(edge: int, size: int) -> int:
    step = math.floor(edge / size * 64 + 0.5)
    return math.floor(step / 64 * 1023 + 0.5)


def _grouped(scene: Scene) -> dict[str, list[SceneObject]]:
    """Things by name, groups and members from left to right; words and digits stand alone."""
    groups: dict[str, list[SceneObject]] = {}
    for thing in scene.objects:
        groups.setdefault(thing.name, []).append(thing)
    return groups


def _nameable(scene: Scene) -> list[str]:
    """The names of stickers and shapes, each once."""
    return list(dict.fromkeys(t.name for t in scene.objects if t.kind in ("sticker", "shape")))


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A name that is not in the scene: half of the time a look-alike of one that is.

    Never a reserved shape: from training it could be learned that there are none.
    """
    present = _nameable(scene)
    while True:
        name = ""
        if present and rng.random() < 0.5:
            name = _look_alike(present[rng.integers(len(present))], rng)
        elif rng.random() < 0.75:
            name = _CONCEPT_NAMES[rng.integers(len(_CONCEPT_NAMES))]
        else:
            name = f"{_any_colour(rng)} {SHAPES[rng.integers(len(SHAPES))]}"
        if name not in present and name not in RESERVED_SHAPES:
            return name


def _look_alike(name: str, rng: np.random.Generator) -> str:
    if name in CONCEPTS:
        group = CONCEPTS[name].group
        others = [other for other in _CONCEPT_NAMES if CONCEPTS[other].group == group]
        return others[rng.integers(len(others))]
    colour, shape = name.split()
    if rng.random() < 0.5:
        return f"{_any_colour(rng)} {shape}"
    return f"{colour} {SHAPES[rng.integers(len(SHAPES))]}"


def _any_colour(rng: np.random.Generator) -> str:
    return tuple(COLOURS)[rng.integers(len(COLOURS))]


def _pick(names: list[str], rng: np.random.Generator) -> str:
    return names[rng.integers(len(names))]


def _caption(scene: Scene, rng: np.random.Generator) -> Example | None:
    return Example("caption en", caption(scene))


def _detect(scene: Scene, rng: np.random.Generator) -> Example | None:
    present = _nameable(scene)
    count = 1 + int(np.searchsorted((0.6, 0.9), rng.random()))
    labels: list[str] = []
    for _ in range(count):
        left = [name for name in present if name not in labels]
        known = left and rng.random() < (0.85 if not labels else 0.7)
        name = _pick(left, rng) if known else _absent(scene, rng)
        if name not in labels:
            labels.append(name)
    return Example("detect " + " ; ".join(labels), detection(scene, labels))


def _segment(scene: Scene, rng: np.random.Generator, codec: MaskCodec) -> Example | None:
    present = _nameable(scene)
    name = _pick(present, rng) if present and rng.random() < 0.85 else _absent(scene, rng)
    return Example(f"segment {name}", segmentation(scene, name, codec))


def _ocr(scene: Scene, rng: np.random.Generator) -> Example | None:
    return Example("ocr", " ".join(t.label for t in scene.objects if t.kind == "word"))


def _how_many(scene: Scene, rng: np.random.Generator) -> Example | None:
    names = [thing.name for thing in scene.objects if thing.kind in ("sticker", "shape")]
    several = [name for name in names if names.count(name) > 1]
    known = names and rng.random() < 0.8
    name = _pick(several or names, rng) if known else _absent(scene, rng)
    return Example(f"answer en how many {plural_of(name)} are there?", str(names.count(name)))


def _what(scene: Scene, rng: np.random.Generator) -> Example | None:
    names = (_short_name(thing) for thing in scene.objects)
    return Example("answer en what is in the picture?", ", ".join(dict.fromkeys(names)))


def _is_there(scene: Scene, rng: np.random.Generator) -> Example | None:
    present = _nameable(scene)
    if rng.random() < 0.42:  # "yes" runs out of names to ask for: this evens out the two
        name, answer = _absent(scene, rng), "no"
    elif present:
        name, answer = _pick(present, rng), "yes"
    else:
        return None
    return Example(f"answer en is there {with_article(name)}?", answer)


def _what_colour(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Only where all circles, say, have one colour."""
    colours: dict[str, set[str]] = {}
    for thing in scene.objects:
        if thing.colour:
            colours.setdefault(thing.label, set()).add(thing.colour)
    clear = [shape for shape, found in colours.items() if len(found) == 1]
    if not clear:
        return None
    shape = _pick(clear, rng)
    return Example(f"answer en what colour is the {shape}?", colours[shape].pop())


def _where(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Only with two things that clearly lie side by side, or one above the other."""
    if len(scene.objects) != 2:
        return None
    axis = int(rng.integers(2))
    first, second = sorted(scene.objects, key=lambda thing: thing.centre[axis])
    if second.centre[axis] - first.centre[axis] < 0.15 * scene.image.shape[0]:
        return None
    side = int(rng.integers(2))
    place = (("on the left", "on the right"), ("at the top", "at the bottom"))[axis][side]
    return Example(f"answer en what is {place}?", _short_name((first, second)[side]))


def _what_digit(scene: Scene, rng: np.random.Generator) -> Example | None:
    digits = [thing.label for thing in scene.objects if thing.kind == "digit"]
    return Example("answer en what digit is it?", digits[0]) if digits else None


def _short_name(thing: SceneObject) -> str:
    return thing.kind if thing.kind in ("word", "digit") else thing.name
