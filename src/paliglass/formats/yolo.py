"""YOLO's label files: a text file beside each picture, class names in data.yaml or classes.txt.

    class cx cy w h          a box: its centre and size
    class x y x y x y …      a polygon

All are shares of the picture's width and height; a class is its place among the names.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paliglass.errors import PaliglassError, not_installed
from paliglass.formats.polygons import outlines
from paliglass.formats.records import decode, read_text
from paliglass.formats.rle import decode_rle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["YoloData", "YoloThing", "parse_line", "read_data", "to_line", "to_yolo", "yolo_places"]

Box = tuple[float, float, float, float]
_SLACK = 1.5  # a box may begin outside its picture; numbers above this are pixels


class YoloData(msgspec.Struct):
    """A data.yaml. train, val, test: folders of pictures, or lists of them; names: the classes, nc:
    how many; kpt_shape: of the keypoints of poses.
    """

    names: list[str | int | float] | dict[int | str, str | int | float]
    nc: int | None = None
    kpt_shape: Any = None
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None

    def classes(self) -> dict[int, str]:
        """Number → name. Raises PaliglassError for other numbers than `nc` tells."""
        named = self.names if isinstance(self.names, dict) else dict(enumerate(self.names))
        if self.nc not in (None, len(named)):
            raise PaliglassError(f"nc is {self.nc}, and names has {len(named)} classes")
        try:
            numbered = {int(number): str(name) for number, name in named.items()}
        except ValueError:
            raise PaliglassError("names has a number for each class, as 0: dog") from None
        return dict(sorted(numbered.items()))


@dataclass(frozen=True)
class YoloThing:
    """A line of a label file. box: x0, y0, x1, y1; polygon: x, y, x, y …; both in shares."""

    number: int
    box: Box
    polygon: tuple[float, ...] = ()


def read_data(path: Path) -> YoloData:
    """A data.yaml. Raises PaliglassError, also where PyYAML is not installed."""
    try:
        import yaml
    except ImportError:
        raise PaliglassError(f"{path}: {not_installed('yaml')}") from None
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PaliglassError(f"{path}: is not YAML ({reason})") from None
    example = "names: [dog, cat] and train: images"
    return decode(content, YoloData, str(path), example)


def parse_line(line: str, where: str) -> YoloThing:
    """A line of a label file. Raises PaliglassError naming where."""
    try:
        number, *values = map(float, line.split())
    except ValueError:
        raise PaliglassError(f"{where}: is no line of numbers, as `0 0.5 0.5 0.2 0.3`") from None
    if not number.is_integer() or number < 0 or not all(map(math.isfinite, values)):
        raise PaliglassError(f"{where}: a class is a whole number, and the others are finite")
    if any(abs(value) > _SLACK for value in values):
        raise PaliglassError(f"{where}: its numbers are pixels; they must be shares of the picture")
    if len(values) == 4:
        x, y, width, height = values
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return YoloThing(int(number), box)
    if len(values) < 6 or len(values) % 2:
        raise PaliglassError(
            f"{where}: has {len(values)} numbers behind the class; a box has 4, a polygon x and y "
            "of 3 corners or more"
        )
    across, down = values[::2], values[1::2]
    box = min(across), min(down), max(across), max(down)
    return YoloThing(int(number), box, tuple(values))


def to_line(
    number: int, box: Box, width: float, height: float, mask: NDArray[np.bool_] | None = None
) -> str | None:
    """A thing's line; None for an empty mask. box: in pixels of a width × height picture.

    A mask's parts and holes are joined to one polygon by seams without width.
    """
    x0, y0, x1, y1 = box
    pairs: list[tuple[float, float]] = [((x0 + x1) / 2, (y0 + y1) / 2), (x1 - x0, y1 - y0)]
    if mask is not None:
        pairs = [*_one_ring(outlines(mask))]
    if not pairs:
        return None
    return f"{number} " + " ".join(f"{x / width:.6f} {y / height:.6f}" for x, y in pairs)


def to_yolo(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, str]:
    """labels/NAME.txt for each picture (empty where nothing is), classes.txt and data.yaml."""
    if any("detections" not in record for record in records):
        raise PaliglassError("YOLO has no place for answers in words; choose json, jsonl or csv")
    numbers = {name: number for number, name in enumerate(names)}
    places = yolo_places([record["file"] for record in records])
    files = {}
    for record in records:
        lines = (
            to_line(
                numbers[item["label"]],
                item["box"],
                record["width"],
                record["height"],
                decode_rle(item["mask"]) if "mask" in item else None,
            )
            for item in record["detections"]
        )
        files[places[record["file"]]] = "".join(f"{line}\n" for line in lines if line)
    files["classes.txt"] = "".join(f"{name}\n" for name in names)
    # A list in JSON is one in YAML too.
    files["data.yaml"] = (
        "# Put the pictures into images/, as their files lie in labels/.\n"
        "path: .\ntrain: images\nval: images\n"
        f"nc: {len(names)}\nnames: {json.dumps(list(names), ensure_ascii=False)}\n"
    )
    return files


def yolo_places(files: Iterable[str]) -> dict[str, str]:
    """Picture → its label file, below labels/ as the picture lies below the folder of them all.

    Raises PaliglassError for two pictures that differ in their suffix alone.
    """
    files = list(files)
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]
    root = os.path.commonpath(folders) if folders else ""
    places: dict[str, str] = {}
    owners: dict[str, str] = {}
    for file, folder in zip(files, folders, strict=True):
        place = Path("labels", os.path.relpath(folder, root), Path(file).stem + ".txt").as_posix()
        other = owners.setdefault(place.lower(), file)
        if other != file:
            raise PaliglassError(
                f"{other} and {file} would share the label file {place}; rename one of them"
            )
        places[file] = place
    return places


def _one_ring(polygons: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Polygons as one: from each back to the first one's start, along seams without width."""
    if len(polygons) < 2:
        return list(polygons[0]) if polygons else []
    start = polygons[0][0]
    joined = [*polygons[0], start]
    for polygon in polygons[1:]:
        joined += [*polygon, polygon[0], start]
    return joined
