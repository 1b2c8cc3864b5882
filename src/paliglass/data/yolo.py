"""YOLO's data sets → examples: `detect` or `segment` with all classes.

    data.yaml             names of the classes, and where the pictures of each split are
    classes.txt           names alone: pictures in images/, labels in labels/

A picture in …/images/ has its label file in …/labels/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paliglass.data.example import Example, Findings
from paliglass.data.labels import to_labels
from paliglass.data.masks import MaskEncoder
from paliglass.data.pictures import named_file, read_header
from paliglass.errors import PaliglassError
from paliglass.formats.polygons import fill_polygons
from paliglass.formats.records import read_lines, read_text
from paliglass.formats.yolo import YoloThing, parse_line, read_data
from paliglass.pictures import SUFFIXES
from paliglass.tasks.boxes import Box, clip_box, encode_box, has_area
from paliglass.tasks.prompts import detect_prompt, segment_prompt

if TYPE_CHECKING:
    from paliglass.modeling_mask_codec import MaskCodec

__all__ = ["YoloObject", "label_file", "read_yolo"]


def read_yolo(
    path: Path, splits: Iterable[str], task: str, codec: MaskCodec | None, findings: Findings
) -> Iterator[Example]:
    """The examples of a data.yaml or classes.txt.

    splits: those of data.yaml to read, of "train", "val" and "test"; those without pictures are
    passed over. Raises PaliglassError where there is nothing to read, or no codec to segment.
    """
    if task == "segment" and codec is None:
        raise PaliglassError(f"{path}: to segment takes a model with a mask codec")
    if path.suffix == ".txt":
        names = dict(
            enumerate(line.strip() for line in read_text(path).split("\n") if line.strip())
        )
        sources = [path.parent / "images"]
    else:
        data = read_data(path)
        if data.kpt_shape is not None:
            raise PaliglassError(f"{path}: is of poses (kpt_shape); no prompt asks for keypoints")
        try:
            names = data.classes()
        except PaliglassError as error:
            raise PaliglassError(f"{path}: {error}") from None
        root = path.parent if data.path is None else path.parent / data.path
        given = {split: getattr(data, split) for split in ("train", "val", "test")}
        named = [entry for split in splits for entry in _listed(given[split])]
        if not named:
            known = ", ".join(split for split, value in given.items() if value) or "none"
            raise PaliglassError(
                f"{path}: has no pictures of {' or '.join(splits)}; it has {known}"
            )
        sources = [_source(entry, root, path.parent) for entry in named]
    labels = to_labels(((f"{path}, names", k, name) for k, name in names.items()), findings)
    if not labels:
        raise PaliglassError(f"{path}: names no class that can be asked for{findings.first}")
    encoder = MaskEncoder(codec)
    found = []
    for picture in _pictures(sources, path):
        file = label_file(picture)
        file = named_file(file.parent, file.name)
        parts, ignored = _read_labels(file, picture, labels, task, encoder, findings)
        found.append((picture, file, parts, ignored))
    _compare_names(path, sources, [(picture, file) for picture, file, _, _ in found], findings)
    codes = encoder.finish()
    prompt = (detect_prompt if task == "detect" else segment_prompt)(list(labels.values()))
    order = {label: place for place, label in enumerate(dict.fromkeys(labels.values()))}
    for picture, file, parts, ignored in found:
        parts.sort(key=lambda part: (order[part[2]], part[3]))
        suffix = " ; ".join(
            f"{tokens}{'' if mask is None else codes[mask]} {label}"
            for tokens, mask, label, _ in parts
        )
        yield Example((picture,), prompt, suffix, str(file), ignored=" ; ".join(ignored))


def _compare_names(
    path: Path, sources: Iterable[Path], found: list[tuple[Path, Path]], findings: Findings
) -> None:
    """Pictures without a label file show nothing; that all of them do is a mistake in the names."""
    files = {file for _, file in found}
    if not any(file.exists() for file in files):
        picture, file = found[0]
        findings.wrong(
            str(path),
            f"not one of its {len(found)} pictures has labels; those of {picture.name} "
            f"would be {file}",
        )
    folders = {file.parent for picture, file in found if file.parent != picture.parent}
    if all(source.is_dir() for source in sources):  # a list may leave pictures out
        texts = {text for folder in folders for text in folder.glob("*.txt")} - files
        strays = sorted(text for text in texts if text.name != "classes.txt")  # labelImg's
        if strays:
            more = f", nor have {len(strays) - 1} others" if strays[1:] else ""
            findings.left_out(str(strays[0]), f"has no picture{more}")


def label_file(picture: Path) -> Path:
    """A picture's labels: below `labels` in place of its path's last `images`, or beside it."""
    parts = list(picture.parent.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts, f"{picture.stem}.txt")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _source(entry: str, root: Path, beside: Path) -> Path:
    """A folder or list of pictures; exports write `../train/images` for what lies beside."""
    entry = entry.replace("\\", "/")
    bare = entry
    while bare.startswith("../"):
        bare = bare[3:]
    for candidate in (root / entry, beside / entry, root / bare, beside / bare):
        if candidate.exists():
            return candidate
    raise PaliglassError(f"{root / entry}: no such folder or list of pictures")


def _pictures(sources: Iterable[Path], path: Path) -> list[Path]:
    pictures: list[Path] = []
    for source in sources:
        if source.is_dir():
            files = (file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
            pictures += sorted(file for file in files if not file.name.startswith("."))
        else:
            lines = (line.strip() for _, line in read_lines(source))
            pictures += [named_file(source.parent, line) for line in lines]
    if not pictures:
        raise PaliglassError(f"{path}: there are no pictures in {', '.join(map(str, sources))}")
    return pictures


YoloObject = tuple[str, int | None, str, Box]
"""Location tokens, number of the mask, label, box in shares."""


def _read_labels(
    file: Path,
    picture: Path,
    labels: Mapping[int, str],
    task: str,
    encoder: MaskEncoder,
    findings: Findings,
) -> tuple[list[YoloObject], list[str]]:
    """A label file's things, and what is ignored; a picture without a file shows nothing."""
    parts: list[YoloObject] = []
    ignored: list[str] = []
    if not file.exists():
        return parts, ignored
    size = (0, 0)
    if task == "segment" and (header := read_header(picture)) is not None:
        size = header.upright
    for where, line in read_lines(file):
        with findings.at(where):
            thing = parse_line(line, where)
            label = labels.get(thing.number)
            if label is None:
                raise PaliglassError(
                    f"{where}: class {thing.number} is none of the {len(labels)} that are named"
                )
            box = Box(*thing.box)
            try:
                tokens = _tokens(box)
                number = _mask(thing, box, size, encoder) if task == "segment" else None
            except PaliglassError as error:
                findings.left_out(where, str(error))
                ignored.append(f"{encode_box(box, 1, 1, outward=True)} {label}")
                continue
            parts.append((tokens, number, label, box))
    return parts, ignored


def _tokens(box: Box) -> str:
    tokens = encode_box(box, 1, 1)
    if clip_box(box, 1, 1) is None:
        raise PaliglassError("the box has no area in the picture")
    if not has_area(tokens):
        raise PaliglassError("the box is thinner than a step of the location tokens")
    return tokens


def _mask(thing: YoloThing, box: Box, size: tuple[int, int], encoder: MaskEncoder) -> int:
    width, height = size
    if not thing.polygon:
        raise PaliglassError("a box has no mask; give a polygon")
    if not width:
        raise PaliglassError("its picture cannot be read")
    corners = (np.reshape(thing.polygon, (-1, 2)) * size).ravel().tolist()
    try:
        mask = fill_polygons([corners], height, width)
    except ValueError as error:
        raise PaliglassError(f"it is {error}") from None
    part = clip_box(box, 1, 1)
    assert part is not None
    pixels = Box(part.x0 * width, part.y0 * height, part.x1 * width, part.y1 * height)
    number = encoder.add(mask, pixels)
    if number is None:
        raise PaliglassError("its mask has no pixel")
    return number
