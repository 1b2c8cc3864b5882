"""JSON lines: PaliGemma's examples, a folder's metadata, and a run's results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = [
    "EXAMPLE",
    "ExampleLine",
    "FoundLine",
    "FoundThing",
    "Metadata",
    "Objects",
    "ResultLine",
    "Thing",
    "to_line",
]

EXAMPLE = '{"image": "dog.png", "prefix": "caption en", "suffix": "a dog"}'


class ExampleLine(msgspec.Struct):
    """A picture or several, a prompt, and an answer or several that are right."""

    image: str | list[str] | None
    prefix: str
    suffix: str | list[str | None] | None


class Objects(msgspec.Struct):
    """Hugging Face's imagefolder: a box (x, y, width, height in pixels) and a class for each."""

    bbox: list[tuple[float, float, float, float]]
    categories: list[str | int] | None = None
    category: list[str | int] | None = None
    label: list[str | int] | None = None


class Metadata(msgspec.Struct):
    """A line of metadata.jsonl, or a row of metadata.csv: what a picture in the folder shows."""

    file_name: str | None = None
    image: str | None = None
    text: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    label: str | int | None = None
    objects: Objects | None = None


class Thing(msgspec.Struct):
    """Something found; see `Found.to_dict`. mask: run lengths."""

    label: str
    box: tuple[float, float, float, float]
    mask: Any = None


class ResultLine(msgspec.Struct):
    """A line of results.jsonl, as the command line writes it."""

    file: str
    prompt: str
    answer: str | None = None
    width: float | None = None
    height: float | None = None
    detections: list[Thing] | None = None


class FoundThing(msgspec.Struct):
    """A `Thing` with all that `Found.to_dict` writes of it."""

    label: str
    box: tuple[float, float, float, float]
    score: float
    mask: dict[str, Any] | None = None


class FoundLine(msgspec.Struct):
    """What `Found.to_dict` writes."""

    width: int
    height: int
    detections: list[FoundThing]
    finish_reason: Literal["stop", "length"] = "stop"


def to_line(record: Mapping[str, Any]) -> str:
    """A record as JSON, without a line break."""
    return json.dumps(record, ensure_ascii=False)
