"""COCO's JSON → examples: `detect` or `segment` with all categories, or captions.

Crowds follow COCO's rules: they are not said, and finding them is not wrong. The size that the file
tells of a picture is compared with the picture's own; what EXIF turns is turned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paliglass.data.example import Example, Findings
from paliglass.data.labels import to_labels
from paliglass.data.masks import MaskEncoder
from paliglass.data.pictures import Frame, compare, named_file, read_header
from paliglass.errors import PaliglassError
from paliglass.formats import coco
from paliglass.formats.polygons import fill_polygons
from paliglass.formats.records import decode, key_of
from paliglass.formats.rle import decode_rle
from paliglass.pictures import MAX_PIXELS
from paliglass.tasks.boxes import Box, clip_box, encode_box, has_area
from paliglass.tasks.prompts import (
    caption_prompt,
    detect_prompt,
    label_key,
    segment_prompt,
)

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["read_coco", "read_mask"]


@dataclass
class _Picture:
    """A picture with what is in it. parts: (order, tokens, number of the mask, label)."""

    path: Path
    size: tuple[int, int]
    where: str
    annotations: list[tuple[str, coco.CocoAnnotation]] = field(default_factory=list)
    parts: list[tuple[Any, str, int | None, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def read_coco(
    path: Path,
    content: Any,
    folder: Path,
    task: str,
    codec: MaskCodec | None,
    findings: Findings,
) -> Iterator[Example]:
    """The examples of a file whose pictures lie in `folder`; its instances from left to right.

    content: what is in the file. Raises PaliglassError where it is no COCO, has no categories, or
    has masks to segment and there is no codec.
    """
    if not coco.is_coco(content):
        raise PaliglassError(f"{path}: is no COCO: it has no images and annotations")
    if coco.has_captions(content):
        yield from _captions(path, content, folder, findings)
        return
    if task == "segment" and codec is None:
        raise PaliglassError(f"{path}: to segment takes a model with a mask codec")
    names = _categories(path, content, findings)
    pictures = _pictures(path, content, folder, findings)
    # Of what is wrong itself it is not told for each of its annotations again.
    told = _ids(content, "categories") - names.keys(), _ids(content, "images") - pictures.keys()
    _assign(path, content, names, pictures, told, findings)
    _corners(path, pictures, findings)
    names = _without_parent(path, content, names, pictures, findings)
    labels = list(dict.fromkeys(names.values()))
    if not labels:
        raise PaliglassError(
            f"{path}: categories has no category that can be asked for{findings.first}"
        )
    order = {name: place for place, name in enumerate(labels)}
    encoder = MaskEncoder(codec)
    for picture in pictures.values():
        _say(picture, names, order, task, encoder, findings)
    codes = encoder.finish()
    prompt = (detect_prompt if task == "detect" else segment_prompt)(labels)
    for picture in pictures.values():
        suffix = " ; ".join(
            f"{tokens}{'' if mask is None else codes[mask]} {label}"
            for _, tokens, mask, label in sorted(picture.parts, key=lambda part: part[0])
        )
        yield Example(
            (picture.path,), prompt, suffix, picture.where, ignored=" ; ".join(picture.ignored)
        )


def _categories(path: Path, content: dict[str, Any], findings: Findings) -> dict[str, str]:
    """Id → label."""
    found = []
    for where, value in coco.entries(path, content, "categories"):
        with findings.at(where):
            category = decode(value, coco.CocoCategory, where)
            found.append((where, key_of(category.id), category.name))
    return to_labels(found, findings)


def _pictures(
    path: Path, content: dict[str, Any], folder: Path, findings: Findings
) -> dict[str, _Picture]:
    """Id → picture."""
    pictures: dict[str, _Picture] = {}
    for where, value in coco.entries(path, content, "images"):
        with findings.at(where):
            image = decode(value, coco.CocoImage, where)
            key = key_of(image.id)
            for name in ("width", "height"):
                number = getattr(image, name)
                if not (math.isfinite(number) and number >= 1 and number == int(number)):
                    raise PaliglassError(
                        f"{where}: {name} is {number:g}; it must be whole, 1 or more"
                    )
            size = int(image.width), int(image.height)
            if size[0] * size[1] > MAX_PIXELS:
                raise PaliglassError(
                    f"{where}: {size[0]} × {size[1]} pixels are more than {MAX_PIXELS:,}"
                )
            file = named_file(folder, image.file_name)
            other = pictures.get(key)
            if other is not None and (other.path, other.size) != (file, size):
                raise PaliglassError(f"{where}: id {key} is that of {other.where} too")
            if other is not None:
                findings.odd(where, f"is there already, as {other.where}")
                continue
            pictures[key] = _Picture(file, size, where)
    return pictures


def _ids(content: dict[str, Any], name: str) -> set[str]:
    """The ids of a list's entries, right or wrong."""
    entries = (entry.get("id") for entry in content[name] if isinstance(entry, dict))
    return {key_of(number) for number in entries if isinstance(number, int | float | str)}


def _assign(
    path: Path,
    content: dict[str, Any],
    names: dict[str, str],
    pictures: dict[str, _Picture],
    told: tuple[set[str], set[str]],
    findings: Findings,
) -> None:
    """Gives the annotations to their pictures.

    told: the ids of categories and of pictures that are wrong and have been named.
    """
    seen: dict[str, str] = {}
    strays = 0
    for where, value in coco.entries(path, content, "annotations"):
        with findings.at(where):
            annotation = decode(value, coco.CocoAnnotation, where)
            if not all(map(math.isfinite, annotation.bbox)):
                raise PaliglassError(
                    f"{where}: bbox is {list(annotation.bbox)}; its numbers must be finite"
                )
            key = key_of(annotation.image_id)
            if key_of(annotation.category_id) in told[0] or key in told[1]:
                continue
            if key_of(annotation.category_id) not in names:
                raise PaliglassError(
                    f"{where}: category_id {annotation.category_id} is no category"
                )
            if key not in pictures:
                strays += 1
                findings.left_out(
                    where, f"image_id {annotation.image_id} is no picture of the file"
                )
                continue
            pictures[key].annotations.append((where, annotation))
            number = value.get("id")
            if isinstance(number, int | float | str) and not isinstance(number, bool):
                first = seen.setdefault(key_of(number), where)
                if first != where:
                    findings.odd(where, f"id {number} is that of {first} too")
    if strays and not any(picture.annotations for picture in pictures.values()):
        findings.wrong(
            f"{path}, annotations", "not one has for its image_id the id of one of images"
        )


def _corners(path: Path, pictures: dict[str, _Picture], findings: Findings) -> None:
    """Tells of bboxes that are x0, y0, x1, y1.

    As such each fits its picture; as x, y, width, height most leave it. Of one or two, which may
    be large boxes a little too large, it is odd; more of them are wrong.
    """
    leaving = count = 0
    for picture in pictures.values():
        width, height = picture.size
        for _, annotation in picture.annotations:
            x, y, w, h = annotation.bbox
            if not (0 <= x < w <= width and 0 <= y < h <= height):
                return
            count += 1
            leaving += x + w > width + 1 or y + h > height + 1
    if 2 * leaving > count:
        tell = findings.wrong if count > 2 else findings.odd
        tell(
            f"{path}, annotations",
            "bbox looks like x0, y0, x1, y1, where COCO has x, y, width, height: as corners all "
            f"{count} fit their pictures, as COCO reads them {leaving} leave them",
        )


def _without_parent(
    path: Path,
    content: dict[str, Any],
    names: dict[str, str],
    pictures: dict[str, _Picture],
    findings: Findings,
) -> dict[str, str]:
    """Without categories that others belong to and nothing is of: Roboflow's exports have one."""
    parents = {
        value["supercategory"]
        for _, value in coco.entries(path, content, "categories")
        if isinstance(value, dict)
        and isinstance(value.get("supercategory"), str)
        and value["supercategory"] != value.get("name")
    }
    parents = {label_key(name) for name in parents}
    used = {
        names[key_of(annotation.category_id)]
        for picture in pictures.values()
        for _, annotation in picture.annotations
    }
    kept = {k: name for k, name in names.items() if name in used or label_key(name) not in parents}
    for name in sorted({*names.values()} - {*kept.values()}):
        findings.left_out(
            f"{path}, categories",
            f"{name!r} is the class that others belong to, and nothing is of it; it is not asked "
            "for",
        )
    return kept


def _say(
    picture: _Picture,
    names: dict[str, str],
    order: dict[str, int],
    task: str,
    encoder: MaskEncoder,
    findings: Findings,
) -> None:
    """Writes a picture's instances as parts of a suffix, or among what is ignored."""
    if not picture.annotations:
        return
    header = read_header(picture.path)
    frame, remark = (Frame(), None) if header is None else compare(header, *picture.size)
    if remark is not None:
        tell = findings.left_out if frame is None else findings.odd
        tell(picture.where, f"{picture.path.name} {remark}")
    for where, annotation in picture.annotations:
        label = names[key_of(annotation.category_id)]
        if frame is None:  # nobody knows where it is
            picture.ignored.append(f"{encode_box(Box(0, 0, 1, 1), 1, 1)} {label}")
            continue
        shares = frame.box(_shares(annotation.bbox, picture.size))
        try:
            if not annotation.iscrowd:
                tokens, number = _written(annotation, picture.size, shares, task, encoder, frame)
                picture.parts.append(((order[label], shares), tokens, number, label))
                if min(shares) < 0 or max(shares) > 1:
                    findings.odd(where, f"{_bbox(annotation, picture.size)} and is cut off there")
                continue
        except PaliglassError as error:
            findings.left_out(where, str(error))
        picture.ignored.append(f"{encode_box(shares, 1, 1, outward=True)} {label}")


def _shares(bbox: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    (x, y, w, h), (width, height) = bbox, size
    return Box(x / width, y / height, (x + w) / width, (y + h) / height)


def _bbox(annotation: coco.CocoAnnotation, size: tuple[int, int]) -> str:
    return f"bbox {list(annotation.bbox)} leaves the picture of {size[0]} × {size[1]},"


def _written(
    annotation: coco.CocoAnnotation,
    size: tuple[int, int],
    shares: Box,
    task: str,
    encoder: MaskEncoder,
    frame: Frame,
) -> tuple[str, int | None]:
    """An instance's location tokens and the number of its mask.

    shares: of the upright picture. Raises PaliglassError where it cannot be written.
    """
    x, y, w, h = annotation.bbox
    box = clip_box(Box(x, y, x + w, y + h), *size)
    if w <= 0 or h <= 0:
        raise PaliglassError(f"bbox {list(annotation.bbox)} has no area")
    if box is None:
        raise PaliglassError(f"{_bbox(annotation, size)} and nothing of it is inside")
    tokens = encode_box(shares, 1, 1)
    if not has_area(tokens):
        raise PaliglassError(
            f"bbox {list(annotation.bbox)} is thinner than a step of the location tokens"
        )
    if task == "detect":
        return tokens, None
    number = encoder.add(read_mask(annotation.segmentation, *size), box, frame)
    if number is None:
        raise PaliglassError("its mask has no pixel inside its bbox")
    return tokens, number


def read_mask(segmentation: Any, width: int, height: int) -> NDArray[np.bool_]:
    """COCO's polygons or run lengths → height × width. Raises PaliglassError."""
    if not segmentation:
        raise PaliglassError("it has no segmentation")
    found = decode({"segmentation": segmentation}, coco.CocoMask, "it").segmentation
    try:
        if not isinstance(found, coco.CocoRle):
            return fill_polygons(found or [], height, width)
        if found.size == (height, width):
            return decode_rle({"size": found.size, "counts": found.counts})
    except ValueError as error:
        raise PaliglassError(f"its segmentation is {error}") from None
    rows, columns = found.size
    raise PaliglassError(
        f"its run lengths are of {columns} × {rows} pixels, the picture has {width} × {height}"
    )


def _captions(
    path: Path, content: dict[str, Any], folder: Path, findings: Findings
) -> Iterator[Example]:
    files: dict[str, tuple[Path, str]] = {}
    for where, value in coco.entries(path, content, "images"):
        with findings.at(where):
            image = decode(value, coco.CocoFile, where)
            file = named_file(folder, image.file_name)
            other, first = files.setdefault(key_of(image.id), (file, where))
            if other != file:
                raise PaliglassError(f"{where}: id {image.id} is that of {first} too")
    told = _ids(content, "images") - files.keys()
    for where, value in coco.entries(path, content, "annotations"):
        with findings.at(where):
            found = decode(value, coco.CocoCaption, where)
            key = key_of(found.image_id)
            if key in told:
                continue
            if key not in files:
                findings.left_out(where, f"image_id {found.image_id} is no picture of the file")
            elif found.caption is None:
                findings.left_out(where, "caption is null")
            else:
                caption = " ".join(found.caption.split())
                yield Example((files[key][0],), caption_prompt(), caption, where)
