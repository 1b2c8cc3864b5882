"""What the tests of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image


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


def results(folder: str) -> list[dict[str, Any]]:
    """The records of an output folder, each on a whole line."""
    text = (Path(folder) / "results.jsonl").read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]
