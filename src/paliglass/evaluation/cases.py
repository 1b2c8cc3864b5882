"""Prompts put to a model, and what it said beside what is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paliglass.generation import Request
from paliglass.model import PaliGemma
from paliglass.pictures import Picture
from paliglass.tasks.answering import parse_objects
from paliglass.tasks.boxes import ParsedBox
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import split_labels

OBJECT_TASKS = ("detect", "segment")
_AT_ONCE = 256  # prompts between two reports of progress


@dataclass(frozen=True)
class Question:
    """A prompt about a picture. answers: all that are right, the one to learn first.

    about: what the metrics need to know besides, a scene for one.
    """

    picture: Picture
    prefix: str
    answers: tuple[str, ...]
    about: Any = None

    @property
    def task(self) -> str:
        """The prompt's first word: "caption", "answer", "detect" …"""
        return self.prefix.partition(" ")[0]


@dataclass(frozen=True)
class Case:
    """A question and its answer. score: as the model has it; objects: of detect and segment, each
    with a score of its own.
    """

    question: Question
    said: str
    score: float = 0.0
    objects: tuple[tuple[ParsedBox, float], ...] = ()


@dataclass(frozen=True)
class Score:
    """A figure and what it rests on: n prompts, or things.

    baseline: what is had without the model, by another way. floor, target: what is asked of it.
    """

    score: float
    n: int
    baseline: float | None = None
    floor: float | None = None
    target: float | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """Rounded to four places, for JSON."""
        values = {name: getattr(self, name) for name in ("score", "baseline", "floor", "target")}
        rounded = {name: None if v is None else round(float(v), 4) for name, v in values.items()}
        return {**rounded, "n": self.n}


def ask(
    model: PaliGemma,
    questions: Sequence[Question],
    *,
    free: bool = False,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Case]:
    """Answers each question greedily, `detect` and `segment` within their grammar unless `free`.

    Questions about one picture should follow each other: it is then looked at once. `progress` is
    told how many are done.
    """
    kinds: dict[bool, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        kinds[question.task in OBJECT_TASKS].append(place)
    cases: dict[int, Case] = {}
    for has_objects, places in kinds.items():
        for start in range(0, len(places), _AT_ONCE):
            some = places[start : start + _AT_ONCE]
            asked = [questions[place] for place in some]
            answer = _find if has_objects else _say
            found = answer(model, asked, free, batch_size, max_new_tokens)
            cases.update(zip(some, found, strict=True))
            progress(len(cases))
    return [cases[place] for place in range(len(questions))]


def _say(
    model: PaliGemma, questions: Sequence[Question], free: bool, batch_size: int, limit: int
) -> list[Case]:
    answers = model.generate(
        [q.picture for q in questions],
        [q.prefix for q in questions],
        batch_size=batch_size,
        max_new_tokens=limit,
    )
    return [Case(q, str(said), said.score) for q, said in zip(questions, answers, strict=True)]


def _find(
    model: PaliGemma, questions: Sequence[Question], free: bool, batch_size: int, limit: int
) -> list[Case]:
    grammars: list[ObjectGrammar | None] = [None] * len(questions)
    if not free:
        grammars = [
            ObjectGrammar(model.processor, split_labels(labels, task), masks=task == "segment")
            for task, _, labels in (question.prefix.partition(" ") for question in questions)
        ]
    requests = (
        Request(
            question.prefix,
            [model.processor.prepare(question.picture)],
            None if grammar is None else grammar.start(),
            max_new_tokens=limit,
        )
        for question, grammar in zip(questions, grammars, strict=True)
    )
    cases = []
    completions = model.complete(requests, batch_size)
    for question, grammar, done in zip(questions, grammars, completions, strict=True):
        objects = tuple(parse_objects(done, model.processor, grammar))
        score = min((raw for _, raw in objects), default=1.0)
        cases.append(Case(question, model.processor.decode(done.ids), score, objects))
    return cases
