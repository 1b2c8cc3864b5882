"""A page of scores and of the worst predictions, in one HTML file."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from paliglass.data.example import OBJECT_TASKS
from paliglass.drawing import draw_objects
from paliglass.evaluation.cases import Case, Score
from paliglass.evaluation.objects import match_boxes
from paliglass.evaluation.texts import exact
from paliglass.pictures import load_picture
from paliglass.tasks.boxes import parse_boxes

__all__ = ["SIDE", "rightness", "to_html", "worst"]

SIDE = 320  # pixels of the longer side of a picture in the page


def rightness(case: Case) -> float:
    """How right a prediction is, in [0, 1]: F1 of boxes, or the exact text."""
    question = case.question
    if case.failure:
        return 0.0
    if question.task in OBJECT_TASKS:
        return match_boxes(case.prediction, question.references[0], question.ignored).f1
    return exact(case.prediction, question.references)


def worst(cases: Sequence[Case], count: int) -> dict[str, list[Case]]:
    """For each task the wrong predictions, the most wrong first, and of these the surest."""
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
    """The page: each split's table, and `count` of the worst predictions of each of its tasks."""
    sections = [
        {
            "name": split,
            "rows": [_row(task, value) for task, value in found.items()],
            "worst": {
                task: [_figure(case) for case in some]
                for task, some in worst(cases[split], count).items()
            },
        }
        for split, found in scores.items()
    ]
    environment = Environment(autoescape=True, keep_trailing_newline=True)
    here = files("paliglass.evaluation")
    template = environment.from_string(here.joinpath("page.html").read_text("utf-8"))
    style = Markup(here.joinpath("page.css").read_text("utf-8"))
    return template.render(title=title, style=style, sections=sections)


def _row(task: str, value: Score) -> dict[str, Any]:
    figures = (value.score, value.baseline, value.floor, value.target)
    return {
        "cells": [task, *("" if v is None else f"{v:.3f}" for v in figures), str(value.n)],
        "missed": value.floor is not None and value.score < value.floor,
    }


def _figure(case: Case) -> dict[str, Any]:
    question = case.question
    pictures = [load_picture(picture) for picture in question.pictures]
    target, prediction = " / ".join(dict.fromkeys(question.references)), case.prediction
    if question.task in OBJECT_TASKS:  # the boxes are in the pictures, right first
        pictures = [_boxes(pictures[0], text) for text in (question.references[0], prediction)]
        target, prediction = _labels(question.references[0]), _labels(prediction)
    else:
        prediction = f"{prediction or 'nothing'} ({case.score:.2f})"
    if case.failure:
        prediction = case.failure
    lines = [("asked", question.prefix), ("right", target or "nothing"), ("said", prediction)]
    return {"pictures": [_data(picture) for picture in pictures], "lines": lines}


def _labels(text: str) -> str:
    return ", ".join(parsed.label for parsed in parse_boxes(text)) or text


def _boxes(picture: Image.Image, answer: str) -> Image.Image:
    width, height = picture.size
    things = parse_boxes(answer)
    boxes = [
        (t.box.x0 * width, t.box.y0 * height, t.box.x1 * width, t.box.y1 * height) for t in things
    ]
    scale = max(1, SIDE // max(picture.size))
    return draw_objects(picture, [thing.label for thing in things], boxes, scale=scale)


def _data(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    scale = SIDE / max(small.size)
    size = max(1, round(small.width * scale)), max(1, round(small.height * scale))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
