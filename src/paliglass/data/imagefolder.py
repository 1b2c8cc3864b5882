"""Hugging Face's imagefolder → examples: a table of what the pictures of a folder show.

    file_name, text                     `caption en`
    file_name, label                    `answer en what is this?`
    file_name, prefix, suffix           itself
    file_name, objects                  `detect`: {"bbox": [[x, y, width, height]], "categories":
                                        ["dog"]}, in pixels of the upright picture

The table is metadata.jsonl or metadata.csv.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paliglass.data.example import Example, Findings
from paliglass.data.labels import to_labels
from paliglass.data.pictures import named_file, read_header
from paliglass.errors import PaliglassError
from paliglass.formats.csv_table import read_rows
from paliglass.formats.jsonl import Metadata, Objects
from paliglass.formats.records import decode, parse_json, read_lines
from paliglass.tasks.boxes import Box, encode_box, has_area
from paliglass.tasks.prompts import answer_prompt, caption_prompt, detect_prompt

__all__ = ["read_metadata"]


def read_metadata(path: Path, findings: Findings) -> Iterator[Example]:
    """The lines of metadata.jsonl or the rows of metadata.csv. Raises PaliglassError for none."""
    rows: list[tuple[str, Metadata]] = []
    for where, value in _rows(path, findings):
        with findings.at(where):
            rows.append((where, decode(value, Metadata, where)))
    if not rows and not findings:
        raise PaliglassError(f"{path}: holds no rows")
    labels = _object_labels(rows, findings)
    for where, row in rows:
        with findings.at(where):
            name = row.file_name or row.image
            if not name:
                findings.left_out(where, "lacks file_name")
                continue
            image = named_file(path.parent, name)
            if row.objects is not None:
                header = read_header(image)
                if header is None:
                    findings.left_out(where, f"{image}: cannot be read, and tells no size")
                else:
                    yield _objects(row.objects, image, header.upright, labels, where, findings)
                continue
            prefix, suffix = row.prefix, row.suffix
            if prefix is None:
                prefix, suffix = caption_prompt(), row.text
                if suffix is None and row.label is not None:
                    prefix, suffix = answer_prompt("what is this?"), str(row.label)
                    if isinstance(row.label, int):
                        findings.odd(where, f"label is the number {suffix}, and is learned as such")
            if suffix is None:
                findings.left_out(where, "lacks text, label, objects, or prefix and suffix")
                continue
            yield Example((image,), prefix, suffix, where)


def _rows(path: Path, findings: Findings) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".csv":
        yield from read_rows(path)
        return
    for where, text in read_lines(path):
        with findings.at(where):
            yield where, parse_json(text, where)


def _names(objects: Objects) -> list[str | int]:
    return objects.categories or objects.category or objects.label or []


def _object_labels(
    rows: Sequence[tuple[str, Metadata]], findings: Findings
) -> dict[str | int, str]:
    """Name → label of the classes of all rows, in alphabetical order."""
    found: dict[str | int, str] = {}
    for where, row in rows:
        if row.objects is not None:
            for name in _names(row.objects):
                found.setdefault(name, where)
    names = sorted((name for name in found if isinstance(name, str)), key=str.casefold)
    return to_labels(((found[name], name, name) for name in names), findings)


def _objects(
    objects: Objects,
    image: Path,
    size: tuple[int, int],
    labels: Mapping[str | int, str],
    where: str,
    findings: Findings,
) -> Example:
    """A picture's boxes, in pixels of the upright picture."""
    names = _names(objects)
    if len(names) != len(objects.bbox):
        raise PaliglassError(f"{where}: {len(objects.bbox)} boxes have {len(names)} categories")
    if not all(isinstance(name, str) for name in names):
        raise PaliglassError(f"{where}: categories are numbers; give their names instead")
    width, height = size
    parts, ignored = [], []
    for (x, y, w, h), name in zip(objects.bbox, names, strict=True):
        box = Box(x, y, x + w, y + h)
        if name not in labels:  # told where it stands first
            continue
        label = labels[name]
        if not all(map(math.isfinite, box)):
            raise PaliglassError(f"{where}: bbox is {[x, y, w, h]}; its numbers must be finite")
        tokens = encode_box(box, width, height)
        if has_area(tokens) and w > 0 and h > 0:
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                findings.odd(
                    where,
                    f"bbox {[x, y, w, h]} leaves the picture of {width} × {height}, and is cut off "
                    "there",
                )
            parts.append(f"{tokens} {label}")
        else:
            findings.left_out(where, f"bbox {[x, y, w, h]} has no area in the picture")
            ignored.append(f"{encode_box(box, width, height, outward=True)} {label}")
    if not labels:
        raise PaliglassError(f"{where}: no row has a category that can be asked for")
    prompt = detect_prompt(list(labels.values()))
    return Example((image,), prompt, " ; ".join(parts), where, ignored=" ; ".join(ignored))
