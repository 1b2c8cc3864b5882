"""COCO's JSON: pictures, categories, boxes, masks, captions.

    {"images":      [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
     "categories":  [{"id": 1, "name": "dog"}],
     "annotations": [{"image_id": 1, "category_id": 1, "iscrowd": 0,
                      "bbox": [x, y, width, height],
                      "segmentation": [[x, y, x, y, …]] or {"size": [H, W], "counts": …}}]}

Annotations of captions are {"image_id": 1, "caption": "a dog"}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from paliglass.errors import PaliglassError
from paliglass.formats.records import Id
from paliglass.formats.rle import decode_rle, encode_rle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "CocoAnnotation",
    "CocoCaption",
    "CocoCategory",
    "CocoFile",
    "CocoImage",
    "CocoMask",
    "CocoRle",
    "annotation",
    "entries",
    "has_captions",
    "is_coco",
    "to_coco",
]

Box = tuple[float, float, float, float]


class CocoImage(msgspec.Struct):
    """A picture; width and height in pixels."""

    id: Id
    file_name: str
    width: float
    height: float


class CocoFile(msgspec.Struct):
    """A picture of a set of captions, whose size does not matter."""

    id: Id
    file_name: str


class CocoCategory(msgspec.Struct):
    """A class. supercategory: the class that it belongs to."""

    id: Id
    name: str | int | float
    supercategory: str | None = None


class CocoAnnotation(msgspec.Struct):
    """A thing in a picture. bbox: x, y, width, height in pixels."""

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    segmentation: Any = None
    iscrowd: bool | int | float | None = 0


class CocoCaption(msgspec.Struct):
    """A sentence about a picture."""

    image_id: Id
    caption: str | None


class CocoRle(msgspec.Struct):
    """Run lengths. size: height and width."""

    size: tuple[int, int]
    counts: str | list[int]


class CocoMask(msgspec.Struct):
    """An annotation's mask, for `records.decode`."""

    segmentation: list[list[float]] | CocoRle | None = None


def is_coco(content: Any) -> bool:
    """Whether a JSON document is COCO's: it has images and annotations."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def entries(path: Path, content: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """(file and entry, value) of a list in a document. Raises PaliglassError for no list."""
    found = content.get(name)
    if not isinstance(found, list):
        raise PaliglassError(f"{path}: {name} is no list")
    return ((f"{path}, {name}[{number}]", value) for number, value in enumerate(found))


def has_captions(content: Mapping[str, Any]) -> bool:
    """Whether a document is one of captions: no categories, and sentences for annotations."""
    if content.get("categories"):
        return False
    found = content.get("annotations")
    some = found[:1] if isinstance(found, list) else []
    return "categories" not in content or any(isinstance(a, dict) and "caption" in a for a in some)


def annotation(
    number: int,
    image_id: int,
    category_id: int,
    box: Box,
    score: float,
    mask: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """A thing found, good as one of COCO's results too; the mask as compressed run lengths.

    box: x0, y0, x1, y1 in pixels. bbox in hundredths of a pixel; area is the mask's, if it has one.
    """
    x0, y0, x1, y1 = box
    found = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
        "area": round((x1 - x0) * (y1 - y0), 2),
        "iscrowd": 0,
        "score": round(score, 4),
    }
    if mask is not None:
        found |= {"area": int(mask.sum()), "segmentation": encode_rle(mask)}
    return found


def to_coco(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A COCO data set of records: images by file name, categories, annotations with a score each.

    names: of the classes. Ids count from 1. Answers in words become annotations with a caption, as
    in COCO's captions.
    """
    categories = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(sorted(records, key=lambda r: str(r["file"])), 1):
        image = {"id": number, "file_name": record["file"]}
        images.append(image | {key: record[key] for key in ("width", "height") if key in record})
        for item in record.get("detections", ()):
            mask = decode_rle(item["mask"]) if "mask" in item else None
            kind, place = categories[item["label"]], len(annotations) + 1
            annotations.append(annotation(place, number, kind, item["box"], item["score"], mask))
        if "detections" not in record:
            caption = {"id": len(annotations) + 1, "image_id": number, "caption": record["answer"]}
            annotations.append(caption | {k: record[k] for k in ("score",) if k in record})
    return {
        "info": {"description": "found by paliglass"},
        "licenses": [],
        "images": images,
        "categories": [{"id": i, "name": n, "supercategory": ""} for n, i in categories.items()],
        "annotations": annotations,
    }
