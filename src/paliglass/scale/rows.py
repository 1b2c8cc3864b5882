"""What is written of each picture: Parquet's typed columns, and the records of other formats.

A row stands for a picture, whatever became of it: what was found or answered, or why nothing was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from paliglass.generation import Completion
from paliglass.tasks.results import Answer, Found, Segment

__all__ = ["SCHEMA", "Row", "failed_row", "to_record", "to_row", "to_table"]

Row = dict[str, Any]

_OBJECT = pa.struct(
    [
        ("label", pa.string()),
        ("box", pa.list_(pa.float32(), 4)),
        ("score", pa.float32()),
        ("mask", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("picture", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("objects", pa.list_(_OBJECT)),
        pa.field("answer", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("log_prob", pa.float64()),
        pa.field("num_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("error", pa.string()),
    ]
)
"""Columns of a part.

id: unique. picture: what it was read from. task: the command's name. width, height: of the upright
picture, in pixels. objects: of detect and segment; box is x0, y0, x1, y1 in pixels, score in
(0, 1], mask COCO's compressed run lengths. answer, score: of the other tasks. log_prob: of all that
the model said, nats. num_tokens: that it said, ends included. finish_reason: "stop" or "length".
error: why there is nothing else.
"""


def to_row(
    about: Mapping[str, str],
    size: tuple[int, int],
    result: Answer | Found[Any],
    completions: Sequence[Completion],
) -> Row:
    """What is written of a picture that was answered. about: id, picture, task, prompt, model."""
    row: Row = dict.fromkeys(SCHEMA.names) | {
        **about,
        "width": size[0],
        "height": size[1],
        "log_prob": sum(sum(some.log_probs) + some.end_log_prob for some in completions),
        "num_tokens": sum(some.num_tokens for some in completions),
        "finish_reason": result.finish_reason,
    }
    if isinstance(result, Answer):
        return row | {"answer": str(result), "score": result.score}
    objects = [
        {
            "label": item.label,
            "box": list(item.box),
            "score": item.score,
            "mask": item.rle() if isinstance(item, Segment) else None,
        }
        for item in result
    ]
    return row | {"objects": objects}


def failed_row(about: Mapping[str, str], why: str) -> Row:
    """What is written of a picture that could not be answered."""
    return dict.fromkeys(SCHEMA.names) | {**about, "error": why}


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table of `SCHEMA`."""
    return pa.Table.from_pylist(list(rows), SCHEMA)


def to_record(row: Row) -> dict[str, Any]:
    """A row as a line of results.jsonl, as the command line writes it; see `formats.export`."""
    record: dict[str, Any] = {"file": row["picture"], "id": row["id"]}
    record |= {name: row[name] for name in ("task", "prompt", "model")}
    if row["error"] is not None:
        return record | {"answer": None, "error": row["error"]}
    ending = {"log_prob": round(row["log_prob"], 4), "finish_reason": row["finish_reason"]}
    if row["objects"] is None:
        return record | {"answer": row["answer"], "score": round(row["score"], 4)} | ending
    detections = [
        {
            "label": item["label"],
            "box": [round(edge, 2) for edge in item["box"]],
            "score": round(item["score"], 4),
            **({} if item["mask"] is None else {"mask": item["mask"]}),
        }
        for item in row["objects"]
    ]
    size = {"width": row["width"], "height": row["height"]}
    return record | size | {"detections": detections} | ending
