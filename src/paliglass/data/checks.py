"""Looks a data set over before a model learns from it what nobody meant."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from paliglass.data.example import OBJECT_TASKS, SPECIAL_TOKENS_IN_PREFIX, Example, Findings
from paliglass.drawing import draw_objects
from paliglass.errors import PictureError, PromptError
from paliglass.pictures import load_picture
from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.tasks.boxes import Box, parse_boxes
from paliglass.tasks.prompts import same_label, split_labels

__all__ = ["DataSummary", "check", "contact_sheet"]

_CELL, _TEXT = 240, 66
_TOKEN = re.compile(r"<(?:loc|seg)\d+>")


@dataclass
class DataSummary:
    """What a data set holds."""

    examples: int = 0
    pictures: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    prefix_tokens: list[int] = field(default_factory=list)
    suffix_tokens: list[int] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return {
            "examples": self.examples,
            "pictures": self.pictures,
            "tasks": dict(self.tasks),
            "prefix_tokens": _range(self.prefix_tokens),
            "suffix_tokens": _range(self.suffix_tokens),
            "left_out": len(self.findings.of("left out")),
            "findings": [
                {"where": found.where, "problem": found.problem, "severity": found.severity}
                for found in self.findings
            ],
        }


def _range(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {"least": min(lengths), "median": median(lengths), "most": max(lengths)}


def check(
    examples: Sequence[Example],
    processor: PaliGemmaProcessor,
    max_tokens: int,
    found: Findings | None = None,
) -> DataSummary:
    """Reads every picture and every text.

    Args:
        max_tokens: what the model takes of a prompt with its pictures and answer.
        found: what reading the examples has found, which stands first in the summary.
    """
    summary = DataSummary(examples=len(examples), findings=Findings(found or ()))
    broken: dict[Path, str | None] = {}
    for example in examples:
        summary.tasks[example.task] += 1
        for image in example.images:
            if image not in broken:
                broken[image] = _fault(image)
        for problem in filter(None, (broken[image] for image in example.images)):
            summary.findings.left_out(example.where, problem)
        for problem in _odd_words(example, processor, max_tokens, summary):
            summary.findings.odd(example.where, problem)
    summary.pictures = len(broken)
    return summary


def _fault(image: Path) -> str | None:
    try:
        load_picture(image)
    except PictureError as error:
        return str(error)
    return None


def _odd_words(
    example: Example, processor: PaliGemmaProcessor, max_tokens: int, summary: DataSummary
) -> list[str]:
    """Complaints about prefix and suffix; their lengths go into the summary."""
    problems = []
    lengths = [0, 0]
    try:
        lengths[0] = len(processor.encode_prefix(example.prefix, 0, SPECIAL_TOKENS_IN_PREFIX))
        lengths[1] = len(processor.encode_suffix(example.suffix))
    except PromptError as error:
        problems.append(str(error))
    summary.prefix_tokens.append(lengths[0])
    summary.suffix_tokens.append(lengths[1])
    total = sum(lengths) + len(example.images) * processor.num_image_tokens
    if total > max_tokens:
        problems.append(f"takes {total} tokens with its picture; the model has {max_tokens}")
    if example.task not in OBJECT_TASKS:
        return problems
    asked = split_labels(example.prefix.removeprefix(example.task), example.task)
    labels = {thing.label for thing in parse_boxes(example.suffix)}
    strange = {label for label in labels if not any(same_label(label, other) for other in asked)}
    if strange:
        problems.append(f"{', '.join(sorted(strange))}: in the suffix, but not asked for")
    if _TOKEN.search(example.prefix):
        problems.append("the prefix holds location or segment tokens")
    if example.is_partial:
        problems.append("nothing of it can be said, so a model does not learn it")
    return problems


def contact_sheet(examples: Sequence[Example], columns: int = 4) -> Image.Image:
    """Pictures with their boxes drawn, prefix and suffix below; broken ones stay grey.

    Of several pictures of a prompt the first is shown.
    """
    rows = -(-len(examples) // columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, example in enumerate(examples):
        x, y = i % columns * _CELL, i // columns * (_CELL + _TEXT)
        try:
            picture = load_picture(example.images[0])
        except PictureError:
            picture = Image.new("RGB", (_CELL, _CELL), (150, 150, 150))
        picture = ImageOps.contain(picture, (_CELL - 4, _CELL - 4))
        things = parse_boxes(example.suffix)
        boxes = [_scaled(thing.box, picture) for thing in things]
        sheet.paste(draw_objects(picture, [t.label for t in things], boxes), (x + 2, y + 2))
        words = _TOKEN.sub("", example.suffix).strip()
        lines = textwrap.wrap(f"{example.prefix}: {words}", 38, max_lines=4, placeholder=" …")
        draw.text((x + 3, y + _CELL), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def _scaled(box: Box, picture: Image.Image) -> Box:
    width, height = picture.size
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
