"""Looks a data set over before a model learns from it what nobody meant."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from paliglass.data.examples import Example
from paliglass.drawing import draw_found
from paliglass.errors import PictureError, PromptError
from paliglass.pictures import load_picture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import Box, parse_boxes
from paliglass.tasks.prompts import split_labels
from paliglass.tasks.results import Detection

_CELL, _TEXT = 240, 66
_TOKEN = re.compile(r"<(?:loc|seg)\d+>")


@dataclass
class Report:
    """What a data set holds. findings: (file and line, what is wrong with it)."""

    examples: int = 0
    pictures: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    prefix_tokens: list[int] = field(default_factory=list)
    suffix_tokens: list[int] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "examples": self.examples,
            "pictures": self.pictures,
            "tasks": dict(self.tasks),
            "prefix_tokens": _range(self.prefix_tokens),
            "suffix_tokens": _range(self.suffix_tokens),
            "findings": [{"where": where, "problem": what} for where, what in self.findings],
        }


def _range(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {"least": min(lengths), "median": median(lengths), "most": max(lengths)}


def check(examples: Sequence[Example], processor: PaliGemmaProcessor, room: int) -> Report:
    """Reads every picture and every text.

    room: tokens that the model has for a prompt with its picture and answer.
    """
    report = Report(examples=len(examples))
    seen: dict[Any, str | None] = {}
    for example in examples:
        report.tasks[example.prefix.split(" ", 1)[0]] += 1
        if example.image not in seen:
            seen[example.image] = _broken(example)
        problems = [seen[example.image], *example.notes, *_wrong_words(example, processor, report)]
        length = report.prefix_tokens[-1] + report.suffix_tokens[-1] + processor.num_image_tokens
        if length > room:
            problems.append(f"takes {length} tokens with its picture; the model has {room}")
        report.findings += [(example.where, problem) for problem in problems if problem]
    report.pictures = len(seen)
    return report


def _broken(example: Example) -> str | None:
    try:
        load_picture(example.image)
    except PictureError as error:
        return str(error)
    return None


def _wrong_words(example: Example, processor: PaliGemmaProcessor, report: Report) -> list[str]:
    """Complaints about prefix and suffix; their lengths go into the report."""
    problems = []
    lengths = [0, 0]
    try:
        lengths[0] = len(processor.encode_prefix(example.prefix, 0, allow_special_tokens=True))
        lengths[1] = len(processor.encode_suffix(example.suffix))
    except PromptError as error:
        problems.append(str(error))
    report.prefix_tokens.append(lengths[0])
    report.suffix_tokens.append(lengths[1])
    task, _, rest = example.prefix.partition(" ")
    if task not in ("detect", "segment"):
        if not example.suffix.strip() and task != "ocr":
            problems.append("the suffix is empty")
        return problems
    parts = [part for part in example.suffix.split(";") if part.strip()]
    found = parse_boxes(example.suffix)
    if len(found) != len(parts):
        problems.append(
            f"{len(parts) - len(found)} of {len(parts)} boxes cannot be read: each is <locY0>"
            "<locX0><locY1><locX1> label, four digits, Y1 > Y0 and X1 > X0, with ; between them"
        )
    if task == "segment" and any(thing.codes is None for thing in found):
        problems.append("a box without 16 <seg> tokens has no mask")
    asked = split_labels(rest) if rest.strip() else []
    strange = {thing.label for thing in found} - set(asked)
    if strange:
        problems.append(f"{', '.join(sorted(strange))}: in the suffix, but not asked for")
    if _TOKEN.search(example.prefix):
        problems.append("the prefix holds location or segment tokens")
    return problems


def contact_sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """Pictures with their boxes drawn, prefix and suffix below; broken ones stay grey."""
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, example in enumerate(examples):
        x, y = i % columns * _CELL, i // columns * (_CELL + _TEXT)
        try:
            picture = load_picture(example.image)
        except PictureError:
            picture = Image.new("RGB", (_CELL, _CELL), (150, 150, 150))
        picture = ImageOps.contain(picture, (_CELL - 4, _CELL - 4))
        found = [
            Detection(t.label, _scaled(t.box, picture), 1.0) for t in parse_boxes(example.suffix)
        ]
        sheet.paste(draw_found(picture, found, scores=False), (x + 2, y + 2))
        said = _TOKEN.sub("", example.suffix).strip()
        lines = textwrap.wrap(f"{example.prefix}: {said}", 38, max_lines=4, placeholder=" …")
        draw.text((x + 3, y + _CELL), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def _scaled(box: Box, picture: Image.Image) -> Box:
    width, height = picture.size
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
