"""A page of scores and of the worst answers, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from paliglass.evaluation.cases import OBJECT_TASKS, Case, Score
from paliglass.evaluation.objects import match_boxes
from paliglass.evaluation.texts import exact
from paliglass.pictures import load_picture
from paliglass.tasks.boxes import Box, parse_boxes
from paliglass.tasks.results import Detection, Found

SIDE = 320  # pixels of the longer side of a picture in the page


def rightness(case: Case) -> float:
    """How right an answer is, in [0, 1]: F1 of boxes, or the exact text."""
    if case.question.task in OBJECT_TASKS:
        return match_boxes(case.said, case.question.answers[0]).f1
    return exact(case.said, case.question.answers)


def worst(cases: Sequence[Case], count: int) -> dict[str, list[Case]]:
    """For each task the wrong answers, the most wrong first, and of these the surest."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if rightness(case) < 1:
            groups[case.question.task].append(case)
    return {
        task: sorted(some, key=lambda case: (rightness(case), -case.score))[:count]
        for task, some in sorted(groups.items())
    }


def to_html(
    title: str,
    scores: Mapping[str, Mapping[str, Score]],
    cases: Mapping[str, Sequence[Case]],
    count: int = 6,
) -> str:
    """The page: each split's table, and `count` of the worst answers to each of its tasks."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{files('paliglass').joinpath('evaluation', 'page.css').read_text('utf-8')}"
        f"</style></head><body><h1>{escape(title)}</h1>",
    ]
    for split, found in scores.items():
        parts.append(f"<section><h2>{escape(split)}</h2>{_table(found)}")
        for task, some in worst(cases[split], count).items():
            parts.append(f"<h3>{escape(task)}: surest of the wrong</h3><div class='cases'>")
            parts += map(_figure, some)
            parts.append("</div>")
        parts.append("</section>")
    return "".join([*parts, "</body></html>\n"])


def _table(found: Mapping[str, Score]) -> str:
    heads = ("task", "score", "baseline", "floor", "target", "n")
    rows = []
    for task, value in found.items():
        figures = (value.score, value.baseline, value.floor, value.target)
        cells = [escape(task), *("" if v is None else f"{v:.3f}" for v in figures), str(value.n)]
        missed = value.floor is not None and value.score < value.floor
        kind = " class='missed'" if missed else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _figure(case: Case) -> str:
    question = case.question
    pictures = load_picture(question.picture)
    shown = [pictures]
    if question.task in OBJECT_TASKS:
        shown = [_boxes(pictures, text) for text in (question.answers[0], case.said)]
    images = "".join(f"<img alt='' src='{_data(picture)}'>" for picture in shown)
    lines = [
        ("asked", question.prefix),
        ("right", " / ".join(dict.fromkeys(question.answers)) or "nothing"),
        ("said", f"{case.said or 'nothing'} ({case.score:.2f})"),
    ]
    if question.task in OBJECT_TASKS:  # the boxes are in the pictures, right first
        lines = [lines[0], *((name, _labels(text)) for name, text in lines[1:])]
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in lines)
    return f"<figure><div class='pictures'>{images}</div><dl>{rows}</dl></figure>"


def _labels(text: str) -> str:
    return ", ".join(parsed.label for parsed in parse_boxes(text)) or text


def _boxes(picture: Image.Image, answer: str) -> Image.Image:
    width, height = picture.size
    found = []
    for parsed in parse_boxes(answer):
        x0, y0, x1, y1 = parsed.box
        box = Box(x0 * width, y0 * height, x1 * width, y1 * height)
        found.append(Detection(parsed.label, box, 1.0))
    scale = max(1, SIDE // max(picture.size))
    return Found(found, width, height).draw(picture, scale, scores=False)


def _data(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    scale = SIDE / max(small.size)
    size = max(1, round(small.width * scale)), max(1, round(small.height * scale))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
