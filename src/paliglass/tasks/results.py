"""What the friendly interface returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paliglass.tasks.boxes import Box


@dataclass(frozen=True)
class Detection:
    """Something found.

    label: as the model says it. box: (x0, y0, x1, y1) in pixels of the upright picture. score:
    in (0, 1], the geometric mean of the probabilities of the tokens that name box and label.
    """

    label: str
    box: Box
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON: pixels to 1/100, the score to 1/10 000."""
        box = [round(edge, 2) for edge in self.box]
        return {"label": self.label, "box": box, "score": round(self.score, 4)}
