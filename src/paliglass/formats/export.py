"""A whole run's results in the formats of other tools: JSON, CSV, COCO, YOLO.

A record is what the command line writes for a picture: its file, task and prompt, then an answer
with its score, or width, height and detections as `Found.to_dict` has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paliglass.errors import PaliglassError
from paliglass.files import replacing
from paliglass.formats.csv_table import to_csv
from paliglass.formats.jsonl import to_line

__all__ = ["EXPORTS", "class_names", "export", "write_files"]

Record = Mapping[str, Any]
EXPORTS = {
    "json": ("results.json",),
    "jsonl": ("results.jsonl",),
    "csv": ("results.csv",),
    "coco": ("coco.json",),
    "yolo": ("classes.txt", "data.yaml", "labels"),
}
"""Format → the files and folders that `export` makes."""


def export(records: Sequence[Record], format: str, labels: Sequence[str] = ()) -> dict[str, str]:
    """File name → text: one file, or for YOLO a label file for each picture and the class names.

    labels: what was asked for; the classes are these in their order, then what else was found. So
    two runs that ask for the same have the same class ids.

    Raises PaliglassError for a format not in EXPORTS, where a format has no place for answers in
    words, or where two pictures would share a label file.
    """
    if format not in EXPORTS:
        raise PaliglassError(f"{format!r} is no format; choose {', '.join(EXPORTS)}")
    # Formats with masks need numpy, for which help and small mistakes should not wait.
    if format == "yolo":
        from paliglass.formats.yolo import to_yolo

        return to_yolo(records, class_names(records, labels))
    [name] = EXPORTS[format]
    if format == "jsonl":
        return {name: "".join(to_line(record) + "\n" for record in records)}
    if format == "csv":
        return {name: to_csv(records)}
    if format == "coco":
        from paliglass.formats.coco import to_coco

        coco = to_coco(records, class_names(records, labels))
        return {name: json.dumps(coco, ensure_ascii=False) + "\n"}
    return {name: json.dumps(list(records), ensure_ascii=False, indent=1) + "\n"}


def class_names(records: Iterable[Record], labels: Sequence[str] = ()) -> list[str]:
    """The labels asked for, then the others that were found, in alphabetical order."""
    found = {item["label"] for record in records for item in record.get("detections", ())}
    return [*labels, *sorted(found - set(labels))]


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes texts, or bytes, into a folder, each whole or not at all."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            # Bytes of a file name that are no text stay what they are in JSON.
            if isinstance(content, str):
                content = content.encode("utf-8", "backslashreplace")
            unfinished.write_bytes(content)
