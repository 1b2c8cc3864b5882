"""Small pictures of shapes that mini knows, and mini itself."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from paliglass.scale.annotator import Annotator, Job

TASK = "detect red circle ; blue square"
JOB = Job(TASK, loading={"device": "cpu", "dtype": "float32"}, min_score=0.05)
PART_SIZE = 2


def shape(number: int) -> Image.Image:
    """A red circle or a blue square of mini's world, somewhere on white."""
    image = Image.new("RGB", (160 + number, 128), "white")
    pen = ImageDraw.Draw(image)
    box = (10 + number, 20, 80 + number, 90)
    if number % 2:
        pen.rectangle(box, fill=(35, 95, 215))
    else:
        pen.ellipse(box, fill=(222, 32, 38))
    return image


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    shape(number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def job() -> Job:
    return JOB


@pytest.fixture(scope="session")
def annotator(job: Job) -> Annotator:
    return Annotator(job)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures, the third broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number) if number != 2 else b"no picture")
    return folder
