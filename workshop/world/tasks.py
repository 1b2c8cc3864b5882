"""From a scene to prompts and answers: PaliGemma's own syntax, and what people type.

An answer follows from the scene and from what is asked, never from how it is asked. Things are
asked for by any term for them (`concepts.means`), and nothing is asked that people would differ
about. What is not there is "nothing", none of it 0, and what no picture tells is "unanswerable",
which is PaliGemma's word for it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from workshop.world.concepts import (
    COLOURS,
    CONCEPTS,
    KINDS,
    MASS,
    SHAPES,
    TERMS,
    means,
    plural_of,
    with_article,
)
from workshop.world.documents import ITEMS, SERIES
from workshop.world.grounds import colour_name
from workshop.world.scenes import Box, Lettering, Scene, SceneObject
from workshop.world.splits import RESERVED_SHAPES, Rules
from workshop.world.wordings import say
from workshop.world.words import is_held_out

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = [
    "NOTHING",
    "TASKS",
    "UNANSWERABLE",
    "Example",
    "caption",
    "description",
    "detection",
    "examples",
    "location_tokens",
    "pair_examples",
    "segmentation",
    "text_of",
    "token_box",
    "unknown_words",
]

NOTHING, UNANSWERABLE = "nothing", "unanswerable"
TASKS = ("caption", "answer", "detect", "segment", "ocr")

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_CONCEPT_NAMES = tuple(CONCEPTS)
_PLAIN_RULES = Rules(0)
# Words of questions that pictures do not answer, but a form, a ticket or a receipt may.
_ON_PAPER = re.compile(
    r"\b(who|whose|when|where|old|age|name|date|day|time|hour|year|month|city|town|company|shop|sold"
    r"|person|phone|number|address|how much|for sale|expensive)\b"
)


@dataclass(frozen=True)
class Example:
    """What is asked and what is right; the prefix carries no newline (the processor adds it).

    kind: of the question ("count", "where", …), for scores by kind; answerable: False where the
    picture does not tell.
    """

    prefix: str
    suffix: str
    kind: str = ""
    answerable: bool = True

    @property
    def task(self) -> str:
        """One of `TASKS`, whatever the words."""
        if not self.kind:
            first = self.prefix.partition(" ")[0]
            return first if first in TASKS else "answer"
        if self.kind == "describe":
            return "caption"
        return self.kind if self.kind in TASKS else "answer"


@lru_cache(maxsize=2)
def unknown_words(held_out: bool) -> tuple[str, ...]:
    """Things that the world never shows, of training or of testing."""
    text = (files("workshop.world") / "unknown.txt").read_text("utf-8")
    words = [word for word in " ".join(text.split()).split(", ") if word not in TERMS]
    return tuple(word for word in words if is_held_out(word) == held_out)


def examples(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    codec: MaskCodec | None = None,
    mixture: Mapping[str, float] = MappingProxyType({}),
    rules: Rules = _PLAIN_RULES,
) -> list[Example]:
    """`count` different prompts about a scene, of mixed kinds; `segment` only with a codec.

    mixture: how much more often than usual a task is asked; rules: the split's, which say in which
    wordings, and how much of what cannot be answered.
    """
    asker = _Asker(scene, rng, rules, codec)
    makers = asker.makers()
    weights = np.cumsum([weight * mixture.get(task, 1.0) for task, weight, _ in makers])
    found: dict[str, Example] = {}
    tries = 0
    while len(found) < count:
        maker = makers[int(np.searchsorted(weights, rng.random() * weights[-1]))][-1]
        example = maker()
        tries += 1
        if tries > 60 * count:  # a scene about which there is little to say
            example = asker.presence() or asker.count()
        if example is not None:
            found.setdefault(example.prefix, example)
    return list(found.values())


def caption(scene: Scene) -> str:
    """The scene in words, left to right: "two dogs, an apple and the word STOP"."""
    return _joined([_phrase(name, group) for name, group in _grouped(scene).items()]) or NOTHING


def _phrase(name: str, group: Sequence[SceneObject]) -> str:
    kind = group[0].kind
    if kind == "document":
        return with_article(name)
    if kind in ("word", "digit"):
        return f"the {_short_name(group[0])} {name}"
    return with_article(name) if len(group) == 1 else f"{_NUMBERS[len(group)]} {plural_of(name)}"


def _joined(phrases: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(phrases[:-1]), *phrases[-1:]) if part)


def description(scene: Scene) -> str:
    """Each thing with its place, and the ground: "a dog at the left … on a white background"."""
    document = scene.document
    if document is not None:
        return f"{caption(scene)} that says {' '.join(document.lines)}"
    if len(scene.objects) == 1:
        text = f"{caption(scene)} {_PLACES[_place_of(scene, scene.objects[0])]}"
    elif len(_grouped(scene)) < 2 or len(scene.objects) > 3:
        text = caption(scene)
    else:
        text = ", ".join(
            f"{_phrase(thing.name, [thing])} {_PLACES[_place_of(scene, thing)]}"
            for thing in scene.objects
        )
    if scene.ground:
        comma = "," if len(scene.objects) > 1 else ""
        text += f"{comma} on {with_article(scene.ground)} background"
    return text


def text_of(scene: Scene) -> str:
    """All that can be read in a scene, as one line: from top to bottom, from left to right."""
    if scene.document is not None:
        return " ".join(scene.document.lines)
    return " ".join(thing.label for thing in _words_of(scene))


def _words_of(scene: Scene) -> list[SceneObject]:
    return _reading_order([thing for thing in scene.objects if thing.kind == "word"])


def detection(scene: Scene, labels: Sequence[str], terms: Sequence[str] | None = None) -> str:
    """Where the labels are: `<locY0><locX0><locY1><locX1> label ; …`.

    Labels in the order asked, instances of one label from left to right; a label that is not
    there gives nothing, and so does a picture with none of them. terms: what the labels stand for,
    where they are written otherwise ("Dogs" for "dog").
    """
    size = scene.image.shape[0]
    return " ; ".join(
        f"{location_tokens(thing.box, size)} {label}"
        for label, term in zip(labels, terms or labels, strict=True)
        for thing in _meant(scene, term)
    )


def segmentation(scene: Scene, label: str, codec: MaskCodec, term: str | None = None) -> str:
    """The outlines of a label: `<loc>`×4 `<seg>`×16 ` label`, ` ; ` between instances.

    In the order of `detection`; nothing where the label is absent. A mask is cropped by the box
    that its own location tokens stand for, which is the one it will be pasted into.
    """
    import torch

    from paliglass.tasks.masks import crop_mask

    size = scene.image.shape[0]
    things = _meant(scene, term or label)
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


_NAMEABLE = ("sticker", "drawing", "shape")


def _meant(scene: Scene, term: str) -> list[SceneObject]:
    """The things that a term can be said of, from left to right."""
    return [t for t in scene.objects if t.kind in _NAMEABLE and means(term, t.name)]


def _grouped(scene: Scene) -> dict[str, list[SceneObject]]:
    """Things by name, groups and members from left to right; words and digits stand alone."""
    groups: dict[str, list[SceneObject]] = {}
    for thing in scene.objects:
        groups.setdefault(thing.name, []).append(thing)
    return groups


_PLACES = {
    "left": "on the left",
    "right": "on the right",
    "middle": "in the middle",
    "top": "at the top",
    "bottom": "at the bottom",
    "top left": "at the top left",
    "top right": "at the top right",
    "bottom left": "at the bottom left",
    "bottom right": "at the bottom right",
}


def _place_of(scene: Scene, thing: SceneObject, margin: float = 0.0) -> str:
    """Where a thing's centre is, of nine places; "" where it is too near to a border of two."""
    size = scene.image.shape[0]
    parts = []
    for value, low, high in zip(thing.centre, ("left", "top"), ("right", "bottom"), strict=True):
        share = value / size
        if min(abs(share - 0.38), abs(share - 0.62)) < margin:
            return ""
        parts.append(low if share < 0.38 else high if share > 0.62 else "")
    return " ".join(part for part in reversed(parts) if part) or "middle"


def _main_colour(scene: Scene, thing: SceneObject) -> str | None:
    """The colour that most of a thing has, dark outlines aside; None for several, or the ground's.

    A drawing of lines alone would have the ground's.
    """
    if thing.colour:
        return thing.colour
    x0, y0, x1, y1 = thing.box
    pixels = scene.image[y0:y1, x0:x1][thing.mask]
    names = Counter(map(colour_name, pixels[:: max(1, len(pixels) // 100)].astype(float)))
    if names["black"] < 0.6 * names.total():
        del names["black"]
    [(colour, count)] = names.most_common(1)
    corners = scene.image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
    ground = {scene.ground, *map(colour_name, corners)}
    return None if count < 0.6 * names.total() or colour in ground else colour


def _short_name(thing: SceneObject) -> str:
    if thing.kind == "digit":
        return "number" if len(thing.label) > 1 else "digit"
    if thing.kind == "word":
        return "number" if thing.label.isdigit() else "word" if thing.label.isalnum() else "text"
    return thing.name


def _reading_order(things: Sequence[SceneObject]) -> list[SceneObject]:
    """From top to bottom; what is beside each other, from left to right."""
    ordered: list[SceneObject] = []
    for thing in sorted(things, key=lambda t: t.centre[1]):
        x0, y0, _, y1 = thing.box
        at = len(ordered)
        while at and ordered[at - 1].box[3] - y0 > 0.5 * min(
            y1 - y0, ordered[at - 1].box[3] - ordered[at - 1].box[1]
        ):
            if ordered[at - 1].box[0] < x0:
                break
            at -= 1
        ordered.insert(at, thing)
    return ordered


class _Asker:
    """Makes examples about one scene; a method gives None where it has nothing to ask."""

    def __init__(
        self, scene: Scene, rng: np.random.Generator, rules: Rules, codec: MaskCodec | None
    ) -> None:
        self.scene, self.rng, self.rules, self.codec = scene, rng, rules, codec
        self.things = [t for t in scene.objects if t.kind in _NAMEABLE]
        self.names = [t.name for t in self.things]
        self.texts = _words_of(scene)
        self.digits = [t for t in scene.objects if t.kind == "digit"]
        self.groups = _grouped(scene)

    def makers(self) -> list[tuple[str, float, Callable[[], Example | None]]]:
        """(task, how often, maker); what cannot be asked at all is left out."""
        n, alone = len(self.scene.objects), len(self.things)
        shapes = any(t.colour for t in self.things)
        makers: list[tuple[str, float, Callable[[], Example | None]]] = [
            ("caption", 0.9, self.caption),
            ("caption", 0.25, self.describe),
            ("answer", 0.45, self.what),
        ]
        if self.scene.document is not None:
            makers += [("answer", 4.0, self.fact), ("ocr", 0.8, self.ocr)]
            makers += [("answer", 0.4, self.document), ("answer", 0.2, self.presence)]
            makers += [("answer", 0.3, self.off_world), ("detect", 0.2, self.detect)]
            makers += [("answer", 0.5, self.no_fact), ("answer", 0.4, self.layout)]
            return makers
        makers += [
            ("detect", 1.4, self.detect),
            ("ocr", 1.5 if self.texts else 0.06, self.ocr),
            ("answer", 0.5, self.count),
            ("answer", 0.6, self.presence),
            ("answer", 0.16, self.absent),
            ("answer", 0.12, self.off_world),
            ("answer", 0.1, self.no_fact),
            ("answer", 0.14, self.total),
            ("answer", 0.08, self.any_text),
            ("answer", 0.4 if n == 0 else 0.05, self.emptiness),
            ("answer", 0.25 if alone else 0.05, self.which_kind),
        ]
        if self.codec is not None:
            makers.append(("segment", 1.4, self.segment))
        if self.texts:
            makers += [("answer", 0.9, self.says), ("answer", 0.4, self.layout)]
            makers.append(("answer", 0.2, self.ink))
        if self.digits:
            makers.append(("answer", 0.8, self.digit))
        if shapes:
            makers += [("answer", 0.5, self.colour), ("answer", 0.15, self.which_shape)]
            makers.append(("answer", 0.5, self.bound))
        if self.scene.ground:
            makers.append(("answer", 0.12, self.ground))
        if n == 1 and alone:
            makers.append(("answer", 0.5, self.what_one))
        if alone:
            makers += [("answer", 0.2, self.where), ("answer", 0.15, self.left_or_right)]
            makers.append(("answer", 0.45, self.thing_colour))
        if n >= 2:
            makers.append(("answer", 0.35, self.place))
        if alone >= 2:
            makers += [("answer", 0.25, self.relation), ("answer", 0.15, self.bigger)]
            makers += [("answer", 0.12, self.more), ("answer", 0.3, self.side_of)]
        if n == 2 and alone:
            makers.append(("answer", 0.2, self.beside))
        if self.rules.new_wordings:  # "ocr" is ever the same
            makers = [maker for maker in makers if maker[0] != "ocr"]
        if self.rules.unknown:
            total = sum(weight for _, weight, _ in makers)
            makers += [("answer", total / 2, self.absent), ("answer", total / 2, self.off_world)]
        return makers

    def _ask(
        self, kind: str, answer: str, answerable: bool = True, wording: str = "", **slots: str
    ) -> Example:
        """A question in some wording; most follow `answer en`, as PaliGemma's do."""
        prefix = self._after_answer(self._say(wording or kind, **slots), 0.85)
        return Example(prefix, answer, kind, answerable)

    def _after_answer(self, text: str, share: float) -> str:
        """A text behind `answer en`, as `PaliGemma.ask` puts it, or as it is."""
        return text if self.rng.random() < 1 - share else f"answer en {text}"

    def _say(self, kind: str, **slots: str) -> str:
        return say(kind, self.rng, self.rules.words, **slots)

    def _pick(self, items: Sequence[str]) -> str:
        return items[int(self.rng.integers(len(items)))]

    def _term(self, name: str) -> str | None:
        """Some word for a thing that is there, of which nobody can doubt what it means here."""
        draw = self.rng.random()
        term = name
        concept = CONCEPTS.get(name)
        if concept is None:
            term = "shape" if draw < 0.06 else name.partition(" ")[2] if draw < 0.3 else name
        elif draw < 0.25 and concept.synonyms:
            term = self._pick(concept.synonyms)
        elif draw < 0.33 and concept.kinds:
            term = self._pick(concept.kinds)
        return next((t for t in (term, name) if self._is_clear(t)), None)

    def _is_clear(self, term: str) -> bool:
        return all(means(term, name) is not None for name in self.names)

    def _there(self) -> str | None:
        return self._term(self._pick(self.names)) if self.names else None

    def _single(self, thing: SceneObject) -> str | None:
        """A term that means this thing and no other in the scene."""
        for term in (self._term(thing.name), thing.name):
            if term and self._is_clear(term) and len(_meant(self.scene, term)) == 1:
                return term
        return None

    def _absent(self) -> str:
        """A term for nothing in the scene: half of the time a look-alike of something that is.

        Never a reserved shape: from training it could be learned that there are none.
        """
        while True:
            term, draw = "", self.rng.random()
            if self.names and draw < 0.45:
                term = self._look_alike(self._pick(self.names))
            elif draw < 0.75:
                term = self._pick(_CONCEPT_NAMES)
                if self.rng.random() < 0.2 and CONCEPTS[term].synonyms:
                    term = self._pick(CONCEPTS[term].synonyms)
            elif draw < 0.82:
                term = self._pick(unknown_words(self.rules.held_out))
            elif draw < 0.87:
                term = self._pick(KINDS)
            else:
                term = f"{self._pick(tuple(COLOURS))} {self._pick(SHAPES)}"
                term = term.partition(" ")[2] if draw > 0.96 else term
            if term in RESERVED_SHAPES or any(means(term, n) is not False for n in self.names):
                continue
            return term

    def _look_alike(self, name: str) -> str:
        if name in CONCEPTS:
            group = CONCEPTS[name].group
            return self._pick(_of_group(group))
        colour, shape = name.split()
        shapes = [other for other in self.names if other not in CONCEPTS]
        if not self.rules.held_out and len(shapes) > 1 and self.rng.random() < 0.6:
            # This one's colour or form with another's: what tells binding from a bag of words.
            other_colour, other_shape = self._pick(shapes).split()
            same_form = self.rng.random() < 0.5
            return f"{other_colour} {shape}" if same_form else f"{colour} {other_shape}"
        if self.rng.random() < 0.5:
            return f"{self._pick(tuple(COLOURS))} {shape}"
        return f"{colour} {self._pick(SHAPES)}"

    # Captions and text

    def caption(self) -> Example:
        """The picture in a line."""
        draw = self.rng.random()
        if self.rules.new_wordings or draw < (0.3 if self.rules.held_out else 0.4):
            prefix = self._after_answer(self._say("caption"), 0.4)
        else:
            prefix = "caption en" if draw < 0.85 else "cap en"
        return Example(prefix, caption(self.scene), "caption")

    def describe(self) -> Example:
        """The picture in more words."""
        prefix = "describe en"
        if self.rules.new_wordings or self.rng.random() < 0.6:
            prefix = self._after_answer(self._say("describe"), 0.4)
        return Example(prefix, description(self.scene), "describe")

    def ocr(self) -> Example:
        """All text, as PaliGemma is asked for it."""
        return Example("ocr", text_of(self.scene), "ocr")

    def says(self) -> Example | None:
        """All text, or the word."""
        if self.digits:
            return None
        label = self.texts[0].label if len(self.texts) == 1 else ""
        if label.isalpha() and self.rng.random() < 0.3:
            return self._ask("word", label)
        if label.isdigit() and self.rng.random() < 0.4:
            return self._ask("number", label, wording="printed number")
        return self._ask("says", text_of(self.scene))

    def any_text(self) -> Example | None:
        """Is there text? Only where nothing but letters can be meant, and no sticker bears any."""
        if self.digits or (not self.texts and self.names):
            return None
        return self._ask("any text", "yes" if self.texts else "no")

    def _lettering(self) -> Lettering | None:
        """Of the only text, where nothing else is written."""
        return self.texts[0].lettering if len(self.texts) == 1 and not self.digits else None

    def layout(self) -> Example | None:
        """How many words or lines there are, and what stands in one of them."""
        document = self.scene.document
        if document is not None:
            if document.kind == "bar chart":  # its numbers stand at any height
                return None
            lines = document.lines
        else:
            lettering = self._lettering()
            if lettering is None:
                return None
            lines = lettering.lines
        parts = (part.strip(".,!?:") for line in lines for part in line.split())
        words = [part for part in parts if any(map(str.isalnum, part))]
        draw = self.rng.random()
        if draw < 0.25:
            return self._ask("lines", str(len(lines)))
        if draw < 0.5 or len(words) == 1:
            return self._ask("words", str(len(words)))
        if draw < 0.7:
            first = self.rng.random() < 0.5
            return self._ask("first word", words[0]) if first else self._ask("last word", words[-1])
        places = ("first", "second", "third")[: len(lines)] + ("last",) * (len(lines) > 1)
        nth = self._pick(places)
        return self._ask("nth line", lines[places.index(nth) if nth != "last" else -1], nth=nth)

    def ink(self) -> Example | None:
        """The colour of the letters, or of the sign beneath them."""
        lettering = self._lettering()
        if lettering is None:
            return None
        if lettering.sign is not None and self.rng.random() < 0.5:
            return self._ask("sign colour", lettering.sign)
        return self._ask("text colour", lettering.ink)

    def digit(self) -> Example | None:
        """What is written by hand."""
        if len(self.digits) != 1 or self.texts:
            return None
        label = self.digits[0].label
        kind = "digit" if len(label) == 1 and self.rng.random() < 0.7 else "number"
        return self._ask(kind, label)

    # What is there

    def what(self) -> Example:
        """The names of all things."""
        names = dict.fromkeys(_short_name(thing) for thing in self.scene.objects)
        return self._ask("what", ", ".join(names) or NOTHING, bool(names))

    def what_one(self) -> Example:
        """The name of the only thing."""
        return self._ask("what", self.names[0], wording="what one")

    def document(self) -> Example:
        """What kind of document it is."""
        return self._ask("document", self.scene.objects[0].label)

    def count(self) -> Example | None:
        """How many there are of something."""
        several = [name for name in self.names if self.names.count(name) > 1]
        if self.names and self.rng.random() < 0.8:
            term = self._term(self._pick(several or self.names))
        else:
            term = self._absent()
        if term is None or term in MASS or (term in CONCEPTS and plural_of(term) in MASS):
            return None
        many = plural_of(term)
        return self._ask("count", str(len(_meant(self.scene, term))), many=many, one=term)

    def presence(self) -> Example | None:
        """Yes or no."""
        if self.rng.random() < 0.42:  # "yes" runs out of names to ask for: this evens out the two
            term, answer = self._absent(), "no"
        else:
            found = self._there()
            if found is None:
                return None
            term, answer = found, "yes"
        return self._is_there(term, answer)

    def _is_there(self, term: str, answer: str) -> Example:
        many, article = plural_of(term), with_article(term)
        return self._ask("presence", answer, one=term, many=many, a=article)

    def bound(self) -> Example | None:
        """Is there a blue circle? Among shapes, of which one is blue and one a circle."""
        shapes = [t for t in self.things if t.colour]
        one, other = (shapes[i] for i in self.rng.integers(len(shapes), size=2))
        asked = f"{one.colour} {other.label}"
        if one.colour == other.colour or one.label == other.label or asked in RESERVED_SHAPES:
            return None
        if self.rng.random() < 0.5:
            return self._is_there(one.name, "yes")
        return None if asked in self.names else self._is_there(asked, "no")

    def total(self) -> Example:
        """How many things in all; a text is one."""
        return self._ask("total", str(len(self.scene.objects)))

    def emptiness(self) -> Example:
        """Is there anything?"""
        empty = not self.scene.objects
        kind = "empty" if self.rng.random() < 0.5 else "anything"
        return self._ask(kind, "yes" if empty == (kind == "empty") else "no")

    def which_kind(self) -> Example | None:
        """Which animal, vehicle …: one, several, or none."""
        kinds = [k for n in self.names for k in (CONCEPTS[n].kinds if n in CONCEPTS else ())]
        if not kinds and self.rng.random() < 0.7:
            return None
        kind = self._pick(kinds) if kinds and self.rng.random() < 0.85 else self._pick(KINDS)
        if not self._is_clear(kind):
            return None
        names = list(dict.fromkeys(thing.name for thing in _meant(self.scene, kind)))
        if kind in names:  # a bird that is just "bird"
            return None
        answer = ", ".join(names) or NOTHING
        if len(names) > 1:
            if kind in MASS:
                return None
            return self._ask(
                "which kind", answer, wording="which kinds", sort=kind, sorts=plural_of(kind)
            )
        return self._ask("which kind", answer, bool(names), sort=kind)

    # Colours

    def colour(self) -> Example | None:
        """A shape's colour, or whether it has some colour; where all circles, say, have one."""
        shapes = list(dict.fromkeys(t.label for t in self.things if t.colour))
        shape = self._pick(shapes)
        meant = _meant(self.scene, shape)
        colours = {thing.colour for thing in meant}
        if not self._is_clear(shape) or len(colours) != 1:
            return None
        [colour] = colours
        if colour is None:
            return None
        if self.rng.random() < 0.7:
            return self._ask("colour", colour, one=shape)
        asked = colour if self.rng.random() < 0.5 else self._pick(tuple(COLOURS))
        if f"{asked} {shape}" in RESERVED_SHAPES:
            return None
        answer, article = "yes" if asked == colour else "no", with_article(asked)
        return self._ask("is colour", answer, one=shape, colour=asked, a_colour=article)

    def thing_colour(self) -> Example | None:
        """The colour of a thing, where most of it has one."""
        found = self._any_single()
        colour = _main_colour(self.scene, found[0]) if found else None
        return self._ask("colour", colour, one=found[1]) if found and colour else None

    def which_shape(self) -> Example | None:
        """The shape of a colour."""
        shapes = [t for t in self.things if t.colour]
        colour = shapes[self.rng.integers(len(shapes))].colour
        found = {t.label for t in shapes if t.colour == colour}
        if colour is None or len(found) > 1 or not self._is_clear("shape"):
            return None
        return self._ask("which shape", found.pop(), colour=colour)

    def ground(self) -> Example | None:
        """The colour of the background."""
        return self._ask("ground", self.scene.ground) if self.scene.ground else None

    # Places

    def _any_single(self) -> tuple[SceneObject, str] | None:
        thing = self.things[self.rng.integers(len(self.things))]
        term = self._single(thing)
        return (thing, term) if term else None

    def where(self) -> Example | None:
        """One of nine places."""
        found = self._any_single()
        place = _place_of(self.scene, found[0], 0.03) if found else ""
        return self._ask("where", place, one=found[1]) if found and place else None

    def left_or_right(self) -> Example | None:
        """The side."""
        found = self._any_single()
        if found is None:
            return None
        share = found[0].centre[0] / self.scene.image.shape[0]
        if abs(share - 0.5) < 0.08:
            return None
        return self._ask("left or right", "left" if share < 0.5 else "right", one=found[1])

    def place(self) -> Example | None:
        """What lies at one end; only where it clearly lies further out than the others."""
        axis, end = int(self.rng.integers(2)), int(self.rng.integers(2))
        ordered = sorted(self.scene.objects, key=lambda t: t.centre[axis])
        first, second = (ordered[0], ordered[1]) if end == 0 else (ordered[-1], ordered[-2])
        apart = abs(first.centre[axis] - second.centre[axis]) / self.scene.image.shape[0]
        if apart < 0.15:
            return None
        words = _ENDS[axis][end] if len(ordered) == 2 else _FURTHEST[axis][end]
        return self._ask("place", _short_name(first), place=self._pick(words))

    def _two(self) -> tuple[SceneObject, str, SceneObject, str] | None:
        i, j = self.rng.choice(len(self.things), 2, replace=False)
        one, other = self.things[i], self.things[j]
        first, second = self._single(one), self._single(other)
        return (one, first, other, second) if first and second and first != second else None

    def _apart(self) -> tuple[str, str, int, bool] | None:
        """Terms for two things, an axis, and whether the first lies clearly further along it."""
        found = self._two()
        if found is None:
            return None
        one, first, other, second = found
        axis = int(self.rng.integers(2))
        apart = (one.centre[axis] - other.centre[axis]) / self.scene.image.shape[0]
        return None if abs(apart) < 0.15 else (first, second, axis, apart > 0)

    def relation(self) -> Example | None:
        """Is this left of that?"""
        found = self._apart()
        if found is None:
            return None
        first, second, axis, further = found
        side = int(self.rng.integers(2))
        answer = "yes" if further == bool(side) else "no"
        words = self._pick(_SIDES[axis][side])
        return self._ask("relation", answer, one=first, other=second, side=words)

    def side_of(self) -> Example | None:
        """Above or below, left or right of another."""
        found = self._apart()
        if found is None:
            return None
        first, second, axis, further = found
        kind, sides = (
            ("which side of", ("left", "right")),
            ("above or below", ("above", "below")),
        )[axis]
        return self._ask(kind, sides[further], one=first, other=second)

    def beside(self) -> Example | None:
        """What is left of this, of two things."""
        one, other = self.scene.objects
        if self.rng.random() < 0.5:
            one, other = other, one
        if one.kind not in _NAMEABLE or one.name == other.name:
            return None
        axis, term = int(self.rng.integers(2)), self._single(one)
        apart = (other.centre[axis] - one.centre[axis]) / self.scene.image.shape[0]
        if term is None or abs(apart) < 0.15:
            return None
        side = int(self.rng.integers(2))
        there = (apart > 0) == bool(side)
        words = self._pick(_SIDES[axis][side])
        return self._ask(
            "beside", _short_name(other) if there else NOTHING, there, one=term, side=words
        )

    def bigger(self) -> Example | None:
        """Which of two, where one is clearly larger in both ways of looking at it."""
        found = self._two()
        if found is None:
            return None
        one, first, other, second = found
        boxes = [(t.box[2] - t.box[0]) * (t.box[3] - t.box[1]) for t in (one, other)]
        areas = [int(t.mask.sum()) for t in (one, other)]
        ratio = min(boxes[0] / boxes[1], areas[0] / max(areas[1], 1))
        inverse = min(boxes[1] / boxes[0], areas[1] / max(areas[0], 1))
        if max(ratio, inverse) < 1.6:
            return None
        more = self._pick(("bigger", "larger", "smaller"))
        large, small = (first, second) if ratio > inverse else (second, first)
        answer = small if more == "smaller" else large
        return self._ask("bigger", answer, one=first, other=second, more=more)

    def more(self) -> Example | None:
        """Are there more of these than of those?"""
        terms = [self._there(), self._there() if self.rng.random() < 0.8 else self._absent()]
        if None in terms or terms[0] == terms[1] or any(term in MASS for term in terms):
            return None
        one, other = (str(term) for term in terms)
        counts = [len(_meant(self.scene, term)) for term in (one, other)]
        answer = "yes" if counts[0] > counts[1] else "no"
        return self._ask("more", answer, many=plural_of(one), others=plural_of(other))

    # What the picture does not tell

    def absent(self) -> Example:
        """A question that takes for granted what is not there."""
        term = self._absent()
        kind = self._pick(
            ("colour", "where", "left or right", "where", "which kind", "says", "digit")
        )
        if kind == "which kind":
            kinds = [k for k in KINDS if all(means(k, name) is False for name in self.names)]
            return self._ask(kind, NOTHING, False, sort=self._pick(kinds or ["ball"]))
        if kind in ("says", "digit"):
            if not self.texts and not self.digits and not self.names:
                return self._ask(kind, NOTHING, False)
            kind = "where"
        return self._ask(kind, NOTHING, False, one=term)

    def off_world(self) -> Example | None:
        """A question that no picture of this world answers."""
        example = self._ask("off world", UNANSWERABLE, False)
        if self.scene.document is not None and _ON_PAPER.search(example.prefix.lower()):
            return None  # the page may tell
        return example

    def no_fact(self) -> Example | None:
        """A fact that only another document would bear."""
        document = self.scene.document
        if document is None:
            if any(not text.label.isalpha() for text in self.texts) or self.digits:
                return None  # a number may be a price or a date
            wording = self._pick(_FACTS)
            if wording == "shop" and self.texts:  # a word may be its name
                return None
        else:
            missing = _MISSING[document.kind]
            wording = self._pick([fact for fact in missing if fact not in document.facts])
        if wording in ("price of", "value of"):
            what = self._pick(ITEMS if wording == "price of" else tuple(chain(*SERIES)))
            lines = () if document is None else document.lines
            if any(what.lower() in line.lower() for line in lines):
                return None
            return self._ask("no fact", UNANSWERABLE, False, wording=f"fact {wording}", what=what)
        page = self._pick(tuple(_MISSING)) if document is None else document.kind
        return self._ask("no fact", UNANSWERABLE, False, wording=f"fact {wording}", page=page)

    # Boxes and masks

    def _label(self, term: str) -> str:
        """A term as it may be typed: with an article, in the plural, with capitals."""
        draw = self.rng.random()
        if self.rules.new_wordings or draw < (0.25 if self.rules.held_out else 0.5):
            kind = self.rng.integers(4)
            term = (term, with_article(term), plural_of(term), f"the {term}")[kind]
            draw = self.rng.random()
            return term.capitalize() if draw < 0.4 else term.upper() if draw > 0.9 else term
        return term

    def detect(self) -> Example | None:
        """Boxes of one to three labels."""
        count = 1 + int(np.searchsorted((0.6, 0.9), self.rng.random()))
        terms: list[str] = []
        for _ in range(count):
            left = [n for n in self.names if not any(means(term, n) for term in terms)]
            known = left and self.rng.random() < (0.85 if not terms else 0.7)
            term = self._term(self._pick(left)) if known else self._absent()
            if term is None:
                return None
            if term not in terms and not any(self._share(term, other) for other in terms):
                terms.append(term)
        labels = [self._label(term) for term in terms]
        between = " ; " if self.rng.random() < 0.85 else self._pick(("; ", ";"))
        return Example(
            "detect " + between.join(labels), detection(self.scene, labels, terms), "detect"
        )

    def _share(self, term: str, other: str) -> bool:
        """Whether something in the scene is meant by both."""
        return any(means(term, name) and means(other, name) for name in self.names)

    def segment(self) -> Example | None:
        """Masks of one label."""
        assert self.codec is not None
        known = self.names and self.rng.random() < 0.85
        term = self._there() if known else self._absent()
        if term is None:
            return None
        label = self._label(term)
        answer = segmentation(self.scene, label, self.codec, term)
        return Example(f"segment {label}", answer, "segment")

    # Documents

    def fact(self) -> Example | None:
        """Something that is on the page."""
        document = self.scene.document
        assert document is not None
        facts = list(document.facts)
        self.rng.shuffle(facts)
        # Prices are many, and the total is what one wants to know.
        kind = next(iter({fact.partition(" of ")[0]: fact for fact in facts}.values()))
        if "total" in facts and self.rng.random() < 0.2:
            kind = "total"
        answer = document.facts[kind]
        values = document.values
        draw = self.rng.random()
        if document.kind in ("receipt", "menu") and draw < 0.3:
            if draw < 0.1:
                return self._ask("items", str(len(values)), page=document.kind)
            best = max(values, key=values.__getitem__)
            least = min(values, key=values.__getitem__)
            if len(set(values.values())) < len(values):
                return None
            return self._ask("dearest", best) if draw < 0.2 else self._ask("cheapest", least)
        if document.kind == "bar chart" and draw < 0.15:
            what, than = self.rng.choice(list(values), 2, replace=False).tolist()
            answer = "yes" if values[what] > values[than] else "no"
            return self._ask("higher", answer, what=what, than=than)
        start, of, what = kind.partition(" of ")
        if of:
            wording = "fact bar colour" if start == "colour" else f"fact {start} of"
            return self._ask(f"fact: {start} of", answer, wording=wording, what=what)
        return self._ask(f"fact: {kind}", answer, wording=f"fact {kind}", page=document.kind)


# What a document never bears, or only where its facts have it; what may be meant otherwise is out.
_MISSING = {
    "receipt": ("seat", "age", "phone", "member", "start", "date", "date", "price of", "price of"),
    "menu": ("seat", "age", "phone", "member", "start", "date", "total", "price of", "price of"),
    "invoice": ("seat", "age", "phone", "member", "start", "date", "date", "time"),
    "ticket": ("age", "phone", "member", "total", "date", "time", "seat", "price", "start"),
    "form": ("seat", "total", "price", "start", "age", "city", "date", "phone", "member"),
    "bar chart": ("seat", "age", "phone", "member", "date", "shop", "value of", "value of"),
}
_FACTS = (
    *("total", "date", "time", "seat", "age", "phone", "member", "shop", "price", "price of"),
    *("value of", "highest", "lowest", "start", "destination"),
)

_ENDS = (
    (
        ("on the left", "on the left side", "to the left"),
        ("on the right", "on the right side", "to the right"),
    ),
    (
        ("at the top", "on top", "in the upper part"),
        ("at the bottom", "below", "in the lower part"),
    ),
)
_FURTHEST = (
    (("furthest to the left", "on the far left"), ("furthest to the right", "on the far right")),
    (("at the very top", "highest up"), ("at the very bottom", "lowest down")),
)
_SIDES = (
    (
        ("left of", "to the left of", "on the left of"),
        ("right of", "to the right of", "on the right of"),
    ),
    (("above", "over", "higher than"), ("below", "under", "lower than")),
)


@lru_cache(maxsize=256)
def _of_group(group: str) -> tuple[str, ...]:
    return tuple(name for name in _CONCEPT_NAMES if CONCEPTS[name].group == group)


def pair_examples(
    first: Scene, second: Scene, rng: np.random.Generator, count: int, rules: Rules = _PLAIN_RULES
) -> list[Example]:
    """`count` different questions about two pictures, shown one after the other."""
    askers = [_Asker(scene, rng, rules, None) for scene in (first, second)]
    names = [list(dict.fromkeys(asker.names)) for asker in askers]
    everything = [[_short_name(t) for t in scene.objects] for scene in (first, second)]
    found: dict[str, Example] = {}

    def clear(term: str) -> bool:
        return all(asker._is_clear(term) for asker in askers)

    def a_term() -> str | None:
        own = [name for part in names for name in part]
        term = askers[0]._pick(own) if own and rng.random() < 0.75 else askers[0]._absent()
        return term if clear(term) and term not in RESERVED_SHAPES else None

    while len(found) < count:
        kind = rng.integers(10)
        asker = askers[0]
        if kind < 3:
            term = a_term()
            if term is None:
                continue
            there = [bool(_meant(scene, term)) for scene in (first, second)]
            answer = {(1, 0): "the first", (0, 1): "the second", (1, 1): "both"}.get(
                (int(there[0]), int(there[1])), "neither"
            )
            example = asker._ask("two which", answer, a=with_article(term))
        elif kind < 5:
            term = a_term()
            if term is None or term in MASS:
                continue
            number = sum(len(_meant(scene, term)) for scene in (first, second))
            example = asker._ask("two count", str(number), many=plural_of(term))
        elif kind < 8:
            nth = int(rng.integers(2))
            answer = ", ".join(dict.fromkeys(everything[nth])) or NOTHING
            example = asker._ask(
                "two what", answer, bool(everything[nth]), nth=("first", "second")[nth]
            )
        elif kind == 8:
            both = [name for name in names[0] if name in names[1]]
            example = asker._ask("two both", ", ".join(both) or NOTHING, bool(both))
        else:
            same = Counter(everything[0]) == Counter(everything[1])
            example = asker._ask("two same", "yes" if same else "no")
        found.setdefault(example.prefix, example)
    return list(found.values())
