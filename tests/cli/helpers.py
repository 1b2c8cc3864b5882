"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from paliglass import Detection, Found
from paliglass.model import PaliGemma
from paliglass.tasks.answering import DetectTask


class Result(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        """Its output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


def picture(path: Path | str, colour: str = "red", size: tuple[int, int] = (40, 30)) -> Path:
    """Saves a picture of one colour."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


CUT = "note: {}: the answer was cut after 6 tokens; --max-new-tokens allows more\n"


def finds(
    monkeypatch: pytest.MonkeyPatch, *items: Detection, in_blue: bool = True
) -> list[list[str]]:
    """Makes detect find the same things in every picture; the labels it was asked for."""
    asked: list[list[str]] = []

    def result(task: DetectTask, pictures: Any, completions: Any) -> Found[Detection]:
        [picture] = pictures
        is_blue = not in_blue and picture.pixels[:, 0, 0].tolist() == [-1, -1, 1]
        return Found([] if is_blue else items, *picture.size)

    def detect_task(model: PaliGemma, labels: Any, free: bool, min_score: float) -> DetectTask:
        asked.append(labels)
        return made(model, labels, free, min_score)

    made = PaliGemma.detect_task
    monkeypatch.setattr(DetectTask, "result", result)
    monkeypatch.setattr(PaliGemma, "detect_task", detect_task)
    return asked


def results(folder: str) -> list[dict[str, Any]]:
    """The records of an output folder, each on a whole line."""
    text = (Path(folder) / "results.jsonl").read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
