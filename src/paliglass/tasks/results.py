"""What the friendly interface returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from paliglass.tasks.boxes import Box

T = TypeVar("T")


class Answer(str):
    """A text with its score in (0, 1]; in every other way a string."""

    score: float

    def __new__(cls, text: str, score: float = 1.0) -> Self:
        answer = super().__new__(cls, text)
        answer.score = score
        return answer


@dataclass(frozen=True)
class Detection:
    """Something found.

    label: as asked for, or as the model says it. box: (x0, y0, x1, y1) in pixels of the upright
    picture. score: in (0, 1], see `tasks.confidence`.
    """

    label: str
    box: Box
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON: pixels to 1/100, the score to 1/10 000."""
        box = [round(edge, 2) for edge in self.box]
        return {"label": self.label, "box": box, "score": round(self.score, 4)}


@dataclass(frozen=True)
class Segment:
    """Something found, with the pixels it covers: mask is H × W, the whole upright picture."""

    label: str
    box: Box
    mask: NDArray[np.bool_]
    score: float


class Found(list[T]):
    """What was found in one picture of width × height pixels."""

    def __init__(self, items: Iterable[T] = (), width: int = 0, height: int = 0) -> None:
        super().__init__(items)
        self.width = width
        self.height = height
