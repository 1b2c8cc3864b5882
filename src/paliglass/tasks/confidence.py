"""How sure an answer is, and whether that can be believed.

A raw score comes from the probabilities of an answer's own tokens:

- a text: the geometric mean over its tokens and `<eos>`
- a box or segment: the label's probability, given the box and among all words, times the geometric
  mean over edges and codes. A model asked for dogs that has drawn a box around a cat hesitates to
  write "dog": that tells right boxes from wrong ones better than the edges do, but only where the
  word competes with all others, not with the labels asked for alone.

A calibration makes of it the
share of answers with such a score that are right: Platt scaling (Platt 1999; arXiv 1706.04599),

    p = sigmoid(slope · logit(raw) + intercept)

two numbers for each task, fitted by `python -m workshop.calibrate` and kept in
calibration.json beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from paliglass.errors import CheckpointError
from paliglass.files import read_json, write_json

__all__ = [
    "FILE",
    "CalibratedTask",
    "Calibration",
    "Platt",
    "load_calibration",
    "logit",
    "object_score",
    "raw_score",
]

FILE = "calibration.json"
CalibratedTask = Literal["answer", "caption", "detect", "segment", "ocr"]
_SMALLEST = 1e-6  # nothing is surer than that: the logit of 1 would be infinite


def raw_score(log_probs: Sequence[float]) -> float:
    """Geometric mean of the probabilities of an answer's tokens, (0, 1]. log_probs: nats."""
    return math.exp(sum(log_probs) / max(len(log_probs), 1))


def object_score(shape: Sequence[float], label: Sequence[float]) -> float:
    """Of log-probabilities (nats) of a box's edges and codes, and of its label's tokens: (0, 1]."""
    return raw_score(shape) * math.exp(sum(label))


def logit(probability: float) -> float:
    """log(p / (1 − p)), with p kept a millionth away from 0 and 1."""
    p = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(p / (1 - p))


@dataclass(frozen=True)
class Platt:
    """p = sigmoid(slope · logit(raw) + intercept); slope ≥ 0, so that the order stays."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, raw: float) -> float:
        z = self.slope * logit(raw) + self.intercept
        # tanh does not overflow; never quite 0, as a score is not.
        return max((1 + math.tanh(z / 2)) / 2, _SMALLEST)


@dataclass(frozen=True)
class Calibration:
    """A scaling for each task; None leaves its raw scores as they are."""

    answer: Platt | None = None
    caption: Platt | None = None
    detect: Platt | None = None
    segment: Platt | None = None
    ocr: Platt | None = None

    def score(self, task: CalibratedTask | None, raw: float) -> float:
        """The score of an answer to `task`; raw where nothing is known of it."""
        scaling: Platt | None = None if task is None else getattr(self, task)
        return raw if scaling is None else scaling(raw)

    def save(self, path: Path) -> None:
        """Writes calibration.json in one step."""
        tasks = ((task.name, getattr(self, task.name)) for task in fields(self))
        write_json(path, {name: asdict(scaling) for name, scaling in tasks if scaling is not None})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """{"detect": {"slope": 1.2, "intercept": 0.3}, …}. Raises ValueError naming the key."""
        tasks = {}
        known = {field.name for field in fields(cls)}
        for task, numbers in data.items():
            if task not in known:
                raise ValueError(
                    f"knows no task {task!r}; the tasks are {', '.join(sorted(known))}"
                )
            if not isinstance(numbers, dict) or set(numbers) != {"slope", "intercept"}:
                raise ValueError(f"{task} must have slope and intercept, and nothing else")
            for name, number in numbers.items():
                is_number = isinstance(number, int | float) and not isinstance(number, bool)
                if not is_number or not math.isfinite(number):
                    raise ValueError(f"{task}.{name} is {number!r}, which is not a finite number")
            if numbers["slope"] < 0:
                raise ValueError(f"{task}.slope is {numbers['slope']}; it must not be negative")
            tasks[task] = Platt(**numbers)
        return cls(**tasks)


def load_calibration(folder: Path) -> Calibration:
    """The calibration.json of a model's folder; one that changes nothing where there is none.

    Raises CheckpointError naming the file and the key.
    """
    path = folder / FILE
    if not path.exists():
        return Calibration()
    try:
        return Calibration.from_dict(read_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; remove the file or calibrate again") from None
