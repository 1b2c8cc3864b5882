"""VQAv2's JSON: questions in one file, people's answers in another."""

from __future__ import annotations

import msgspec

from paliglass.formats.records import Id

__all__ = ["VqaAnnotation", "VqaAnswer", "VqaQuestion"]

Text = str | int | float | bool | None


class VqaQuestion(msgspec.Struct):
    """A question about a picture."""

    question_id: Id
    image_id: Id
    question: str


class VqaAnswer(msgspec.Struct):
    """What one person answered."""

    answer: Text = None


class VqaAnnotation(msgspec.Struct):
    """The answers to a question. multiple_choice_answer: the most frequent."""

    question_id: Id
    answers: list[VqaAnswer | Text] | None
    multiple_choice_answer: Text = None
