"""Scores on the picture world: each split's tasks, beside what is had without the model.

- "test", and what training never showed: other wordings, vendors, compositions, drawings,
  documents, photographs
- "reading", "lines", "digits": what a scene's text says
- "unknown": whether a score tells what can be answered from what cannot
- "blank" and "shuffled": the test questions about grey pictures, and about other scenes' pictures;
  what is scored there was guessed from the prompt, and should be no more than one constant answer
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paliglass.evaluation.cases import Case, Question, Score
from paliglass.evaluation.judge import answer
from paliglass.evaluation.objects import (
    Matches,
    mask_overlaps,
    masks_in,
    match_boxes,
    match_objects,
)
from paliglass.evaluation.texts import character_errors, exact
from paliglass.model import PaliGemma
from paliglass.modeling_mask_codec import MaskCodec
from workshop.calibrate import calibration_error
from workshop.world import World
from workshop.world.baseline import PixelNeighbours, cut_out
from workshop.world.concepts import COLOURS, CONCEPTS, SHAPES, plural_of
from workshop.world.scenes import Scene
from workshop.world.splits import Split
from workshop.world.tasks import NOTHING, UNANSWERABLE, Example, location_tokens, text_of
from workshop.world.words import is_word

CONTROLS = ("blank", "shuffled")
WORLD_SPLITS: tuple[Split, ...] = (
    "test",
    "wordings",
    "phrasings",
    "style",
    "composition",
    "reading",
    "lines",
    "digits",
    "plain",
    "documents",
    "unknown",
    "photos",
)
SCORED_SPLITS: tuple[str, ...] = (*WORLD_SPLITS, *CONTROLS)
NAMED = {"test": "sticker", "style": "sticker", "photos": "sticker", "plain": "drawing"}
NAMING = "answer en what is in the picture?"
READING = {"reading": ("word", "ocr"), "digits": ("digit", "answer en what digit is it?")}
GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("wordings", "answer"): (0.90, 0.96),
    ("wordings", "calibration error"): (None, 0.10),
    ("test", "answer"): (0.947, 0.96),
    ("test", "caption"): (0.90, 0.95),
    ("test", "detect"): (0.97, 0.98),
    ("test", "segment"): (0.81, 0.90),
    ("reading", "word"): (0.75, 0.90),
    ("reading", "WORD"): (0.88, 0.95),
    ("lines", "character errors"): (0.10, 0.04),
    ("style", "naming"): (0.55, 0.80),
    ("style", "detect"): (0.80, 0.88),
    ("plain", "naming"): (0.70, 0.90),
    ("documents", "answer"): (0.60, 0.85),
    ("unknown", "AUROC"): (0.90, 0.97),
}
COMPOSED = ("caption", "answer", "detect", "segment")
COMPOSED_LOSS = 0.04, 0.02  # what they may lose against the test split: floor and target

Scores = dict[str, Score]
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class About:
    """What the metrics need to know of a question: the scene, and how it was asked."""

    scene: Scene
    example: Example


def evaluate(
    model: PaliGemma,
    open_world: Callable[[Split], World],
    splits: Sequence[str] = SCORED_SPLITS,
    limit: int = 1000,
    prompts: int = 8,
    batch_size: int = 32,
    progress: Progress = lambda split, done, count: None,
) -> tuple[dict[str, Scores], dict[str, list[Case]]]:
    """Scores of each split's tasks, and every answer.

    Args:
        open_world: gives the world of a split.
        splits: some of `SCORED_SPLITS`.
        limit: scenes of each, and of scenes with a single thing to be named.
        prompts: questions about each scene.
        progress: told a split, how many of its questions are answered, and of how many.

    Raises PaliglassError where a split's art cannot be had.
    """
    scores: dict[str, Scores] = {}
    answered: dict[str, list[Case]] = {}
    for split in sorted(splits, key=SCORED_SPLITS.index):
        world = open_world("test" if split in CONTROLS else _world_split(split))
        asked = list(questions_of(world, split, limit, prompts))

        def told(done: int, split: str = split, count: int = len(asked)) -> None:
            progress(split, done, count)

        cases = answer(model, asked, batch_size=batch_size, progress=told)
        answered[split] = cases
        found = score(cases, model.mask_codec)
        if split in ("wordings", "phrasings", "unknown"):
            found |= _sureness(model, cases)
        if split == "reading" and (rival := read_by_rapidocr(cases)) is not None:
            found = {
                task: replace(value, baseline=rival[task].score) for task, value in found.items()
            }
        if split in NAMED:
            alone = list(_alone(world, NAMED[split], limit))
            named = answer(model, alone, batch_size=batch_size)
            found["naming"] = _naming(named, open_world("train"))
            answered[split] += named
        scores[split] = _goals(split, found, scores)
    return scores, answered


def _world_split(name: str) -> Split:
    return next(split for split in WORLD_SPLITS if split == name)


def questions_of(world: World, split: str, limit: int, prompts: int) -> Iterator[Question]:
    """What is asked about the first `limit` scenes of a split, or control."""
    for index in range(limit):
        scene, examples = world.sample(index, prompts=prompts)
        if split in READING:
            kind, prefix = READING[split]
            [text] = [thing.label for thing in scene.objects if thing.kind == kind]
            examples = [Example(prefix, text, "ocr" if kind == "word" else kind)]
        elif split == "lines":
            examples = [Example("ocr", text_of(scene), "ocr")]
        picture = scene.image
        if split == "blank":
            picture = np.full_like(picture, 128)
        elif split == "shuffled":
            picture = world.scene(limit + index).image
        for example in examples:
            yield Question(picture, example.prefix, (example.suffix,), About(scene, example))


def _alone(world: World, kind: str, limit: int) -> Iterator[Question]:
    """Scenes that hold one sticker or drawing and nothing else, from where `questions_of` ends.

    Every word for it is right.
    """
    index = limit
    while limit:
        scene = world.scene(index)
        index += 1
        if len(scene.objects) == 1 and scene.objects[0].kind == kind:
            limit -= 1
            name = scene.objects[0].name
            names = (name, *(CONCEPTS[name].synonyms if name in CONCEPTS else ()))
            yield Question(scene.image, NAMING, names, About(scene, Example(NAMING, name, "what")))


@cache
def _singular() -> Mapping[str, str]:
    names = [*CONCEPTS, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    return {plural_of(name): name for name in names}


def score(cases: Sequence[Case], codec: MaskCodec | None) -> Scores:
    """Each task's score, its baseline the best that one constant answer to a kind of prompt does.

    caption: F1 of the things named; describe: exact; answer: exact, also by kind; detect: F1 of
    boxes, IoU ≥ .5; segment: IoU of each thing's mask, over that of what the codec makes of the
    true one (`segment IoU` is the first alone, its baseline the second); ocr: the text exactly, by
    sort (`_sort`); character errors: of all of it.
    """
    constant = _score(_one_answer(cases), codec)
    found = {
        name: replace(value, baseline=constant[name].score)
        for name, value in _score(cases, codec).items()
    }
    if "segment IoU" in found:
        true = [replace(case, prediction=case.question.references[0]) for case in cases]
        ceiling = _score(true, codec)["segment IoU"].score
        iou = found["segment IoU"]
        found["segment"] = replace(iou, score=iou.score / ceiling)
        found["segment IoU"] = replace(iou, baseline=ceiling)
    return found


def _score(cases: Sequence[Case], codec: MaskCodec | None) -> Scores:
    matches: dict[str, Matches] = defaultdict(Matches)
    values: dict[str, list[float]] = defaultdict(list)
    wrong = characters = 0
    for case in cases:
        question, prediction = case.question, case.prediction
        truth, example = question.references[0], question.about.example
        if example.kind == "detect":
            matches["detect"] += match_boxes(prediction, truth)
        elif example.kind == "segment":
            scene = question.about.scene
            if codec is not None:
                label = question.prefix.partition(" ")[2]
                side = scene.image.shape[0]
                meant = [t for t in scene.objects if location_tokens(t.box, side) in truth]
                targets = [(label, scene.mask(thing)) for thing in meant]
                predicted = masks_in(prediction, codec, *scene.image.shape[:2])
                values["segment IoU"] += mask_overlaps(predicted, targets)
        elif example.kind == "caption":
            matches["caption"] += match_objects(prediction, truth, _singular())
        elif example.kind == "describe":
            values["describe"].append(exact(prediction, [truth]))
        elif example.kind == "ocr":
            if not truth:  # nothing to read: silence is right, and no skill
                values["silence"].append(exact(prediction, [truth]))
                continue
            values[_sort(truth)].append(exact(prediction, [truth]))
            changes, length = character_errors(prediction, [truth])
            wrong, characters = wrong + changes, characters + length
        else:
            right = exact(prediction, [truth])
            values["answer"].append(right)
            values[f"answer: {example.kind}"].append(right)
    found = {name: Score(match.f1, match.targets) for name, match in matches.items()}
    found |= {name: Score(float(np.mean(v)), len(v)) for name, v in values.items() if v}
    if characters:
        found["character errors"] = Score(wrong / characters, characters)
    return dict(sorted(found.items()))


def _sort(text: str) -> str:
    """Of a text: "WORD" in capitals, "word" otherwise, "string" of random letters, "lines"."""
    if " " in text:
        return "lines"
    if not is_word(text):
        return "string"
    return "WORD" if text.isupper() else "word"


def _one_answer(cases: Sequence[Case]) -> list[Case]:
    """The cases as if to each kind of prompt the commonest of the right answers had been given."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        answers[case.question.about.example.kind][case.question.references[0]] += 1
    return [
        replace(case, prediction=answers[case.question.about.example.kind].most_common(1)[0][0])
        for case in cases
    ]


def _sureness(model: PaliGemma, cases: Sequence[Case]) -> Scores:
    """What the scores of answers are worth: their calibration error, and AUROC.

    AUROC: how often a question that the picture answers has the higher score of two, the other one
    being a question that it does not answer. "Nothing" and "unanswerable" count as 1 − score.
    """
    asked = [case for case in cases if case.question.about.example.task == "answer"]
    platt = model.calibration.answer
    sure = [case.score if platt is None else platt(case.score) for case in asked]
    right = [case.prediction == case.question.references[0] for case in asked]
    found = {"calibration error": Score(calibration_error(sure, right), len(asked))}
    silent = [case.prediction in ("", NOTHING, UNANSWERABLE) for case in asked]
    there = np.where(silent, 1 - np.array(sure), sure)
    answerable = np.array([case.question.about.example.answerable for case in asked])
    if 0 < answerable.sum() < len(asked):
        higher = there[answerable][:, None] - there[~answerable][None]
        auroc = float(((higher > 0) + (higher == 0) / 2).mean())
        found["AUROC"] = Score(auroc, len(asked), baseline=0.5)
    return found


def _goals(split: str, found: Scores, others: Mapping[str, Scores]) -> Scores:
    """The scores with what is asked of them, a composition's from the test split's."""
    for task, value in found.items():
        floor, target = GOALS.get((split, task), (None, None))
        if split == "composition" and task in COMPOSED and task in others.get("test", ()):
            floor, target = (others["test"][task].score - loss for loss in COMPOSED_LOSS)
        found[task] = replace(value, floor=floor, target=target)
    return found


def _naming(cases: Sequence[Case], known: World) -> Score:
    """How many lone things are named, beside the nearest known sticker's pixels.

    The baseline is told the box, and sees only that.
    """
    truths = [case.question.references for case in cases]
    nearest = PixelNeighbours(known.art)([_cut(case) for case in cases])
    baseline = float(np.mean([name in names for name, names in zip(nearest, truths, strict=True)]))
    right = float(np.mean([exact(c.prediction, c.question.references) for c in cases]))
    return Score(right, len(cases), baseline)


def _cut(case: Case) -> NDArray[np.uint8]:
    scene = case.question.about.scene
    return cut_out(scene.image, scene.objects[0].box, 0.2)


def read_by_rapidocr(cases: Sequence[Case]) -> Scores | None:
    """`score` of rapidocr on the same pictures, four times as large; None if not installed."""
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError:
        return None
    from PIL import Image

    engine = RapidOCR()
    read = []
    for case in cases:
        picture = Image.fromarray(np.asarray(case.question.picture))
        large = picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.BICUBIC)
        lines, _ = engine(np.asarray(large)[..., ::-1])
        text = " ".join(text for _, text, _ in lines or []).strip()
        read.append(replace(case, prediction=text))
    return _score(read, None)
