"""Prompts put to a model, and its predictions beside what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paliglass.pictures import Picture
from paliglass.tasks.boxes import ParsedBox

__all__ = ["Case", "Question", "Score"]


@dataclass(frozen=True)
class Question:
    """A prompt about a picture, or about several (a tuple).

    references: all answers that are right, the one to learn first. about: what the metrics need to
    know besides, a scene for one. ignored: regions that count neither way, as boxes with labels;
    see `match_boxes`. where: what a message calls it.
    """

    picture: Picture | tuple[Picture, ...]
    prefix: str
    references: tuple[str, ...]
    about: Any = None
    ignored: str = ""
    where: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.picture if isinstance(self.picture, tuple) else (self.picture,)

    @property
    def task(self) -> str:
        """The prompt's first word: "caption", "answer", "detect" …"""
        return self.prefix.partition(" ")[0]


@dataclass(frozen=True)
class Case:
    """A question and what the model predicts.

    score: as the model has it; objects: of detect and segment, each with a score of its own;
    is_cut: whether the limit ended the prediction, which is scored as far as it goes. failure: why
    the model has none, as after an overflow; the prediction is then empty, and wrong even where
    that is right.
    """

    question: Question
    prediction: str
    score: float = 0.0
    objects: tuple[tuple[ParsedBox, float], ...] = ()
    is_cut: bool = False
    failure: str = ""


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
