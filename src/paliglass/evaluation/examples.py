"""Scores on data of one's own: what is measured follows from what each prompt asks for.

caption, cap, describe      CIDEr, exact match
answer, question            VQA accuracy, exact match, ANLS
ocr                         character and word error rate, ANLS, exact match
detect                      F1 at IoU ≥ .5, COCO's mAP and AP50
segment                     mean IoU of masks, F1 of boxes at IoU ≥ .5
anything else               exact match, ANLS
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from paliglass.data.examples import Example
from paliglass.errors import PaliglassError
from paliglass.evaluation.cases import Case, Question, Score
from paliglass.evaluation.objects import Matches, mask_overlaps, masks_said, match_boxes
from paliglass.evaluation.texts import (
    anls,
    character_errors,
    cider,
    exact,
    vqa_accuracy,
    word_errors,
)
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.tasks.boxes import Box, parse_boxes

CAPTIONS = ("caption", "cap", "describe")
ANSWERS = ("answer", "question")
SIDE = 256  # pixels of the square that masks of data are compared in


def to_questions(examples: Iterable[Example]) -> list[Question]:
    """One question for each picture and prompt, with all that is right, in the first one's place.

    A set of captions has several entries for a picture; VQA has ten answers in one.
    """
    asked: dict[tuple[str, str], list[str]] = defaultdict(list)
    for example in examples:
        found = example.answers or (example.suffix,)
        asked[str(example.image), example.prefix] += found
    return [
        Question(picture, prefix, tuple(answers)) for (picture, prefix), answers in asked.items()
    ]


def score(cases: Sequence[Case], codec: MaskCodec | None) -> dict[str, Score]:
    """A score for each "task: metric" of every task among the cases; see the module's list.

    Raises PaliglassError for `segment` without a mask codec.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.question.task].append(case)
    found: dict[str, Score] = {}
    for task, some in sorted(groups.items()):
        metrics = (
            _boxes(some)
            if task == "detect"
            else _masks(some, codec)
            if task == "segment"
            else _texts(task, some)
        )
        found |= {f"{task}: {metric}": value for metric, value in metrics.items()}
    return found


def _texts(task: str, cases: Sequence[Case]) -> dict[str, Score]:
    said = [case.said for case in cases]
    answers = [case.question.answers for case in cases]
    pairs = list(zip(said, answers, strict=True))
    found = {"exact": [exact(*pair) for pair in pairs]}
    if task in CAPTIONS:
        found["CIDEr"] = cider(said, answers)
    else:
        found["ANLS"] = [anls(*pair) for pair in pairs]
    if task in ANSWERS:
        found["VQA accuracy"] = [vqa_accuracy(*pair) for pair in pairs]
    scores = {name: Score(float(np.mean(v)), len(v)) for name, v in found.items()}
    if task == "ocr":
        for name, count in (("CER", character_errors), ("WER", word_errors)):
            wrong, length = map(sum, zip(*(count(*pair) for pair in pairs), strict=True))
            scores[name] = Score(wrong / max(length, 1), length)
    return scores


def _boxes(cases: Sequence[Case]) -> dict[str, Score]:
    match = sum((match_boxes(c.said, c.question.answers[0]) for c in cases), Matches())
    found = {"F1": Score(match.f1, match.there)}
    precision = average_precision(cases)
    if precision is not None:
        found |= {"mAP": Score(precision[0], match.there), "AP50": Score(precision[1], match.there)}
    return found


def _masks(cases: Sequence[Case], codec: MaskCodec | None) -> dict[str, Score]:
    if codec is None:
        raise PaliglassError("scoring `segment` takes a model with a mask codec (mask_codec=)")
    overlaps: list[float] = []
    match = Matches()
    for case in cases:
        truth = case.question.answers[0]
        mine, real = (masks_said(text, codec, SIDE, SIDE) for text in (case.said, truth))
        overlaps += mask_overlaps(mine, real)
        match += match_boxes(case.said, truth)
    found = {"F1": Score(match.f1, match.there)}
    if overlaps:
        found["IoU"] = Score(float(np.mean(overlaps)), len(overlaps))
    return found


def average_precision(cases: Sequence[Case]) -> tuple[float, float] | None:
    """COCO's mAP (the mean over IoU .5 to .95) and AP50 of the cases' objects, by their scores.

    Edges are thousandths of the picture; sizes are not told apart. None where nothing is there to
    be found, or faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        return None
    labels: dict[str, int] = {}
    truths: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for image, case in enumerate(cases, 1):
        for real in parse_boxes(case.question.answers[0]):
            label = labels.setdefault(real.label, len(labels) + 1)
            box = _thousandths(real.box)
            truths.append(
                {
                    **{"id": len(truths) + 1, "image_id": image, "category_id": label},
                    **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
                }
            )
        for mine, score in case.objects:
            label = labels.setdefault(mine.label, len(labels) + 1)
            box = _thousandths(mine.box)
            claims.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    if not truths:
        return None
    if not claims:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table of its own
        known = COCO(
            {
                "images": [
                    {"id": i, "width": 1000, "height": 1000} for i in range(1, len(cases) + 1)
                ],
                "categories": [{"id": number, "name": name} for name, number in labels.items()],
                "annotations": truths,
            }
        )
        scorer = COCOeval_faster(known, known.loadRes(claims), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return float(scorer.stats[0]), float(scorer.stats[1])


def _thousandths(box: Box) -> list[float]:
    x0, y0, x1, y1 = (1000 * edge for edge in box)
    return [x0, y0, x1 - x0, y1 - y0]
