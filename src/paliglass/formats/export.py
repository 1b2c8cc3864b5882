"""A whole run's results in the formats of other tools: JSON, CSV, COCO, YOLO.

A record is what the command line writes for a picture: its file, task and prompt, then an answer
with its score, or width, height and detections as `Found.to_dict` has them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paliglass.errors import PaliglassError
from paliglass.tasks.results import Found

Record = Mapping[str, Any]
EXPORTS = {
    "json": ("results.json",),
    "jsonl": ("results.jsonl",),
    "csv": ("results.csv",),
    "coco": ("coco.json",),
    "yolo": ("classes.txt", "data.yaml", "labels"),
}
"""Format → the files and folders that `export` makes."""

_ANSWER_COLUMNS = ("file", "task", "prompt", "answer", "score")
_BOX_COLUMNS = ("file", "width", "height", "label", "score", "x0", "y0", "x1", "y1")


def export(records: Sequence[Record], format: str, labels: Sequence[str] = ()) -> dict[str, str]:
    """File name → text: one file, or for YOLO a label file for each picture and the class names.

    labels: what was asked for; the classes are these in their order, then what else was found. So
    two runs that ask for the same have the same class ids.

    Raises PaliglassError for a format not in EXPORTS, where a format has no place for answers in
    words, or where two pictures would share a label file.
    """
    if format not in EXPORTS:
        raise PaliglassError(f"{format!r} is no format; choose {', '.join(EXPORTS)}")
    if format == "yolo":
        return to_yolo(records, labels)
    [name] = EXPORTS[format]
    if format == "jsonl":
        return {name: "".join(to_line(record) + "\n" for record in records)}
    if format == "csv":
        return {name: to_csv(records)}
    if format == "coco":
        return {name: json.dumps(to_coco(records, labels), ensure_ascii=False) + "\n"}
    return {name: json.dumps(list(records), ensure_ascii=False, indent=1) + "\n"}


def to_line(record: Record) -> str:
    """A record as JSON, without a line break."""
    return json.dumps(record, ensure_ascii=False)


def to_csv(records: Iterable[Record], header: bool = True) -> str:
    """A line for each answer, or for each thing found; edges in pixels. Masks have no column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for record in records:
        found = record.get("detections")
        if header:
            writer.writerow(_ANSWER_COLUMNS if found is None else _BOX_COLUMNS)
            header = False
        if found is None:
            writer.writerow([record.get(column, "") for column in _ANSWER_COLUMNS])
            continue
        start = [record["file"], record["width"], record["height"]]
        writer.writerows([*start, i["label"], i["score"], *i["box"]] for i in found)
    return text.getvalue()


def to_coco(records: Sequence[Record], labels: Sequence[str] = ()) -> dict[str, Any]:
    """A COCO data set: images by file name, categories, annotations with a score each.

    Ids count from 1. Answers in words become annotations with a caption, as in COCO's captions.
    """
    categories = {name: number for number, name in enumerate(_classes(records, labels), 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(sorted(records, key=lambda r: str(r["file"])), 1):
        image = {"id": number, "file_name": record["file"]}
        images.append(image | {key: record[key] for key in ("width", "height") if key in record})
        first = len(annotations) + 1
        if "detections" in record:
            annotations += Found.from_dict(record).to_coco(number, categories, first)
        else:
            caption = {"id": first, "image_id": number, "caption": record["answer"]}
            annotations.append(caption | {k: record[k] for k in ("score",) if k in record})
    return {
        "info": {"description": "found by paliglass"},
        "licenses": [],
        "images": images,
        "categories": [{"id": i, "name": n, "supercategory": ""} for n, i in categories.items()],
        "annotations": annotations,
    }


def to_yolo(records: Sequence[Record], labels: Sequence[str] = ()) -> dict[str, str]:
    """labels/NAME.txt for each picture (empty where nothing is), classes.txt and data.yaml."""
    if any("detections" not in record for record in records):
        raise PaliglassError("YOLO has no place for answers in words; choose json, jsonl or csv")
    names = _classes(records, labels)
    places = yolo_places([record["file"] for record in records])
    files = {
        places[record["file"]]: "".join(
            f"{line}\n" for line in Found.from_dict(record).to_yolo(names)
        )
        for record in records
    }
    files["classes.txt"] = "".join(f"{name}\n" for name in names)
    # A list in JSON is one in YAML too.
    files["data.yaml"] = f"nc: {len(names)}\nnames: {json.dumps(names, ensure_ascii=False)}\n"
    return files


def yolo_places(files: Sequence[str]) -> dict[str, str]:
    """Picture → its label file, below labels/ as the picture lies below the folder of them all.

    Raises PaliglassError for two pictures that differ in their suffix alone.
    """
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


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes texts into a folder, each whole or not at all."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name[:200]}.tmp")
        # Bytes of a file name that are no text stay what they are in JSON.
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(unfinished, path)


def _classes(records: Iterable[Record], labels: Sequence[str]) -> list[str]:
    found = {item["label"] for record in records for item in record.get("detections", ())}
    return [*labels, *sorted(found - set(labels))]
