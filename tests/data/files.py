"""Data sets written for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from paliglass.data.example import Example, Findings
from paliglass.data.reading import open_examples


def write(path: Path, data: Any) -> Path:
    """Text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def lines(path: Path, *rows: Any) -> Path:
    """JSON lines."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def paint(path: Path, size: tuple[int, int] = (200, 100), orientation: int = 1) -> Path:
    """A picture, with EXIF's orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(path, exif=exif)
    return path


def look(path: Path, **how: Any) -> tuple[list[Example], Findings]:
    """What is read, and what is found."""
    findings = Findings()
    return open_examples(path, findings=findings, **how), findings
