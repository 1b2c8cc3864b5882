"""Scores on the picture world: each split's tasks, beside what is had without the model.

- in distribution ("test"), held-out styles, compositions, photos: everything that can be asked
- "reading" and "digits": what a scene's text says
- "blank" and "shuffled": the test questions about grey pictures, and about other scenes' pictures;
  what is scored there was guessed from the prompt, and should be no more than one constant answer
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from workshop.world import World
from workshop.world.baseline import PixelNeighbours, cut_out
from workshop.world.concepts import COLOURS, CONCEPTS, SHAPES, plural_of
from workshop.world.splits import Split
from workshop.world.words import is_word

CONTROLS = ("blank", "shuffled")
WORLD_SPLITS: tuple[Split, ...] = ("test", "style", "composition", "reading", "digits", "photos")
SCORED_SPLITS: tuple[str, ...] = (*WORLD_SPLITS, *CONTROLS)
NAMING = "answer en what is in the picture?"
READING = {"reading": "ocr", "digits": "answer en what digit is it?"}
QUESTIONS = {  # how a question begins → what is asked for
    "answer en how many": "count",
    "answer en is there": "presence",
    "answer en what colour": "colour",
    "answer en what digit": "digit",
    "answer en what is in": "names",
    "answer en what is": "place",
}
GOALS: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("test", "caption"): (0.85, 0.95),
    ("test", "answer"): (0.85, 0.95),
    ("test", "detect"): (0.75, 0.90),
    ("test", "segment"): (0.80, 0.90),
    ("reading", "word"): (0.75, 0.92),
    ("style", "detect"): (0.60, 0.82),
    ("style", "naming"): (None, 0.80),  # its floor rests on the baseline
    ("photos", "naming"): (None, 0.50),
}
ABOVE_PIXELS = 0.15
COMPOSED = ("caption", "answer", "detect", "segment")
COMPOSED_LOSS = 0.05, 0.02  # what they may lose against the test split: floor and target

Scores = dict[str, Score]
Progress = Callable[[str, int, int], object]


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
        scores[split] = _goals(split, score(cases, model.mask_codec), scores)
        if split == "reading" and (rival := read_by_rapidocr(cases)) is not None:
            scores[split] |= {
                task: replace(value, baseline=rival[task].score)
                for task, value in scores[split].items()
            }
        if split in ("test", "style", "photos"):
            named = answer(model, list(_single_stickers(world, limit)), batch_size=batch_size)
            scores[split]["naming"] = _naming(split, named, open_world("train"))
            answered[split] += named
    return scores, answered


def _world_split(name: str) -> Split:
    return next(split for split in WORLD_SPLITS if split == name)


def questions_of(world: World, split: str, limit: int, prompts: int) -> Iterator[Question]:
    """What is asked about the first `limit` scenes of a split, or control."""
    if split in READING:
        kind = "word" if split == "reading" else "digit"
        for index in range(limit):
            scene = world.scene(index)
            [text] = [thing.label for thing in scene.objects if thing.kind == kind]
            yield Question(scene.image, READING[split], (text,), scene)
        return
    for index in range(limit):
        scene, examples = world.sample(index, prompts=prompts)
        picture = scene.image
        if split == "blank":
            picture = np.full_like(picture, 128)
        elif split == "shuffled":
            picture = world.scene(limit + index).image
        for example in examples:
            yield Question(picture, example.prefix, (example.suffix,), scene)


def _single_stickers(world: World, limit: int) -> Iterator[Question]:
    """Scenes that hold one sticker and nothing else, from where `questions_of` ends."""
    index = limit
    while limit:
        scene = world.scene(index)
        index += 1
        if len(scene.objects) == 1 and scene.objects[0].kind == "sticker":
            limit -= 1
            yield Question(scene.image, NAMING, (scene.objects[0].name,), scene)


@cache
def _singular() -> Mapping[str, str]:
    names = [*CONCEPTS, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)]
    return {plural_of(name): name for name in names}


def score(cases: Sequence[Case], codec: MaskCodec | None) -> Scores:
    """Each task's score, its baseline the best that one constant answer to a kind of prompt does.

    caption: F1 of the things named; answer: exact, also by kind; detect: F1 of boxes, IoU ≥ .5;
    segment: IoU of each thing's mask, over that of what the codec makes of the true one (`segment
    IoU` is the first alone, its baseline the second); read: the text exactly, words and random
    strings told apart where that is all there is.
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
        [truth] = question.references
        if question.task == "detect":
            matches["detect"] += match_boxes(prediction, truth)
        elif question.task == "caption":
            matches["caption"] += match_objects(prediction, truth, _singular())
        elif question.task == "segment":
            label = question.prefix.partition(" ")[2]
            scene = question.about
            if codec is not None:
                targets = [(t.name, scene.mask(t)) for t in scene.objects if t.name == label]
                predicted = masks_in(prediction, codec, *scene.image.shape[:2])
                values["segment IoU"] += mask_overlaps(predicted, targets)
        elif question.task == "ocr":
            if not truth:  # nothing to read: silence is right, and no skill
                values["silence"].append(exact(prediction, [truth]))
                continue
            values["word" if is_word(truth) else "string"].append(exact(prediction, [truth]))
            changes, length = character_errors(prediction, [truth])
            wrong, characters = wrong + changes, characters + length
        else:
            right = exact(prediction, [truth])
            values["answer"].append(right)
            values[f"answer: {_kind(question.prefix)}"].append(right)
    found = {name: Score(match.f1, match.targets) for name, match in matches.items()}
    found |= {name: Score(float(np.mean(v)), len(v)) for name, v in values.items() if v}
    if characters:
        found["character errors"] = Score(wrong / characters, characters)
    return dict(sorted(found.items()))


def _kind(prefix: str) -> str:
    return next((kind for start, kind in QUESTIONS.items() if prefix.startswith(start)), "other")


def _one_answer(cases: Sequence[Case]) -> list[Case]:
    """The cases as if to each kind of prompt the commonest of the right answers had been given."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)

    def kind(case: Case) -> str:
        task = case.question.task
        return _kind(case.question.prefix) if task == "answer" else task

    for case in cases:
        answers[kind(case)][case.question.references[0]] += 1
    return [replace(case, prediction=answers[kind(case)].most_common(1)[0][0]) for case in cases]


def _goals(split: str, found: Scores, others: Mapping[str, Scores]) -> Scores:
    """The scores with what is asked of them, a composition's from the test split's."""
    for task, value in found.items():
        floor, target = GOALS.get((split, task), (None, None))
        if split == "composition" and task in COMPOSED and task in others.get("test", ()):
            floor, target = (others["test"][task].score - loss for loss in COMPOSED_LOSS)
        found[task] = replace(value, floor=floor, target=target)
    return found


def _naming(split: str, cases: Sequence[Case], known: World) -> Score:
    """How many single stickers are named, beside the nearest known sticker's pixels.

    The baseline is told the box, and sees only that.
    """
    truths = [case.question.references[0] for case in cases]
    nearest = PixelNeighbours(known.art)([_cut(case) for case in cases])
    baseline = float(np.mean([a == b for a, b in zip(nearest, truths, strict=True)]))
    right = float(np.mean([exact(c.prediction, c.question.references) for c in cases]))
    floor, target = GOALS.get((split, "naming"), (None, None))
    if split == "style":
        floor = baseline + ABOVE_PIXELS
    return Score(right, len(cases), baseline, floor, target)


def _cut(case: Case) -> NDArray[np.uint8]:
    scene = case.question.about
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
