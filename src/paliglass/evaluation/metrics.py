"""Scores of predictions: what is measured follows from what each prompt asks for.

caption, cap, describe      CIDEr, exact match
answer, question            VQA accuracy, exact match, ANLS
ocr                         character and word error rate, ANLS, exact match
detect                      F1 at IoU ≥ .5, COCO's mAP and AP50
segment                     mean IoU of masks, F1 of boxes at IoU ≥ .5
anything else               exact match, ANLS

An answer that failed (`Case.failure`) is wrong, whatever is right.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from paliglass.errors import PaliglassError
from paliglass.evaluation.cases import Case, Score
from paliglass.evaluation.objects import Matches, mask_overlaps, masks_in, match_boxes
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
from paliglass.tasks.prompts import label_key

__all__ = ["ANSWERS", "CAPTIONS", "SIDE", "average_precision", "overall", "score"]

CAPTIONS = ("caption", "cap", "describe")
ANSWERS = ("answer", "question")
SIDE = 256  # pixels of the square that masks are compared in
# Of each kind of task the one metric that a run is steered by, brought to 0 … 1.
_STEERING = {
    "caption": ("CIDEr", 0.1),
    "answer": ("VQA accuracy", 1.0),
    "detect": ("F1", 1.0),
    "segment": ("IoU", 1.0),
    "other": ("exact", 1.0),
}


def score(cases: Sequence[Case], codec: MaskCodec | None) -> dict[str, Score]:
    """A score for each "task: metric" of every task among the cases; see the module's list.

    Raises PaliglassError for `segment` without a mask codec.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.question.task].append(case)
    if "segment" in groups and codec is None:
        raise PaliglassError("scoring `segment` takes a model with a mask codec (mask_codec=)")
    return {
        f"{task}: {metric}": value
        for task, some in sorted(groups.items())
        for metric, value in _measure(task, some, codec).items()
    }


def overall(cases: Sequence[Case], codec: MaskCodec | None) -> float:
    """0 … 1: the mean over the kinds of tasks that there are, each by one metric of its own.

    F1 at IoU .5 for `detect`, the masks' IoU for `segment` (without a codec F1), a tenth of CIDEr
    for captions, VQA accuracy for answers, exact match for the rest. 0 without any case.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[_kind(case.question.task)].append(case)
    values = []
    for kind, some in groups.items():
        found = _measure(some[0].question.task, some, codec)
        metric, scale = _STEERING[kind]
        value = found.get(metric) or found["F1"]
        values.append(scale * value.score)
    return float(np.mean(values)) if values else 0.0


def _kind(task: str) -> str:
    if task in CAPTIONS:
        return "caption"
    if task in ANSWERS:
        return "answer"
    return task if task in ("detect", "segment") else "other"


def _measure(task: str, cases: Sequence[Case], codec: MaskCodec | None) -> dict[str, Score]:
    if task == "detect":
        return _boxes(cases)
    return _masks(cases, codec) if task == "segment" else _texts(task, cases)


def _texts(task: str, cases: Sequence[Case]) -> dict[str, Score]:
    predictions = [case.prediction for case in cases]
    references = [case.question.references for case in cases]
    pairs = list(zip(predictions, references, strict=True))
    found = {"exact": [exact(*pair) for pair in pairs]}
    if task in CAPTIONS:
        found["CIDEr"] = cider(predictions, references)
    else:
        found["ANLS"] = [anls(*pair) for pair in pairs]
    if task in ANSWERS:
        found["VQA accuracy"] = [vqa_accuracy(*pair) for pair in pairs]
    # Where nothing is right to say, a failure's empty text would be right.
    is_answer = np.array([not case.failure for case in cases])
    scores = {name: Score(float(np.mean(v * is_answer)), len(v)) for name, v in found.items()}
    if task == "ocr":
        for name, count in (("CER", character_errors), ("WER", word_errors)):
            errors, lengths = np.array([count(*pair) for pair in pairs]).T
            length = int(lengths.sum())
            wrong = np.maximum(errors, ~is_answer).sum()
            scores[name] = Score(float(wrong) / max(length, 1), length)
    return scores


def _matches(cases: Sequence[Case]) -> Matches:
    return sum(map(_match, cases), Matches())


def _match(case: Case) -> Matches:
    """A failure where nothing is there to be found counts as one wrong prediction."""
    found = match_boxes(case.prediction, case.question.references[0], case.question.ignored)
    return Matches(0, 1, 0) if case.failure and not found.targets else found


def _boxes(cases: Sequence[Case]) -> dict[str, Score]:
    match = _matches(cases)
    found = {"F1": Score(match.f1, match.targets)}
    precision = average_precision(cases)
    if precision is not None:
        found |= {
            name: Score(value, match.targets)
            for name, value in zip(("mAP", "AP50"), precision, strict=True)
        }
    return found


def _masks(cases: Sequence[Case], codec: MaskCodec | None) -> dict[str, Score]:
    match = _matches(cases)
    found = {"F1": Score(match.f1, match.targets)}
    if codec is None:
        return found
    overlaps: list[float] = []
    for case in cases:
        texts = case.prediction, case.question.references[0]
        found_masks, real = (masks_in(text, codec, SIDE, SIDE) for text in texts)
        overlaps += mask_overlaps(found_masks, real)
        if case.failure and not real:
            overlaps.append(0.0)
    if overlaps:
        found["IoU"] = Score(float(np.mean(overlaps)), len(overlaps))
    return found


def average_precision(cases: Sequence[Case]) -> tuple[float, float] | None:
    """COCO's mAP (the mean over IoU .5 to .95) and AP50 of the cases' objects, by their scores.

    What a question ignores is a crowd there. Edges are thousandths of the picture; sizes are not
    told apart. None where nothing is there to be found, or faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        return None
    labels: dict[str, int] = {}

    def category(label: str) -> int:
        return labels.setdefault(label_key(label), len(labels) + 1)

    targets: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image, case in enumerate(cases, 1):
        real = [(thing, 0) for thing in parse_boxes(case.question.references[0])]
        crowds = [(thing, 1) for thing in parse_boxes(case.question.ignored)]
        for thing, is_crowd in real + crowds:
            box = _thousandths(thing.box)
            target = {"id": len(targets) + 1, "image_id": image, "bbox": box}
            target |= {"category_id": category(thing.label), "area": box[2] * box[3]}
            targets.append(target | {"iscrowd": is_crowd})
        for thing, score in case.objects:
            found = {"image_id": image, "category_id": category(thing.label), "score": score}
            predictions.append(found | {"bbox": _thousandths(thing.box)})
    if all(target["iscrowd"] for target in targets):
        return None
    if not predictions:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table of its own
        known = COCO(
            {
                "images": [
                    {"id": i, "width": 1000, "height": 1000} for i in range(1, len(cases) + 1)
                ],
                "categories": [{"id": number, "name": name} for name, number in labels.items()],
                "annotations": targets,
            }
        )
        scorer = COCOeval_faster(known, known.loadRes(predictions), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return float(scorer.stats[0]), float(scorer.stats[1])


def _thousandths(box: Box) -> list[float]:
    x0, y0, x1, y1 = (1000 * edge for edge in box)
    return [x0, y0, x1 - x0, y1 - y0]
