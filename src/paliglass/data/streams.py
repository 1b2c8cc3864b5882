"""Anything that the `datasets` library streams, as pictures and JSON lines to fine-tune on.

Rows come one at a time, so a set of any size can be begun; what is kept is a folder that
`paliglass train finetune --data` reads, looked over and trained on as often as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from paliglass.checkpoints.saving import new_folder
from paliglass.data.vqa import answer_text, most_frequent
from paliglass.errors import PaliglassError, PictureError, not_installed
from paliglass.formats.jsonl import to_line
from paliglass.pictures import load_picture
from paliglass.tasks.prompts import answer_prompt, caption_prompt

__all__ = [
    "ANSWERS",
    "CAPTIONS",
    "FILE",
    "IMAGES",
    "LABELS",
    "class_names",
    "fetch",
    "open_stream",
    "to_rows",
]

FILE = "data.jsonl"
IMAGES = ("image", "img", "picture", "jpg", "png")
CAPTIONS = ("caption", "captions", "text", "sentences", "description")
ANSWERS = ("answers", "answer", "multiple_choice_answer", "label_name")
LABELS = ("label", "class", "fine_label")


def open_stream(name: str, config: str | None, split: str) -> Any:
    """A data set of the hub, or of local files, as a stream. Raises PaliglassError."""
    try:
        import datasets
    except ImportError as error:
        raise PaliglassError(not_installed("datasets")) from error
    kinds = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    try:
        if Path(name).is_file():
            kind = kinds.get(Path(name).suffix)
            if kind is None:
                raise PaliglassError(f"{name}: is none of {', '.join(kinds)}")
            return datasets.load_dataset(kind, data_files=name, split=split, streaming=True)
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except PaliglassError:
        raise
    except Exception as error:  # the library raises whatever its storage does
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PaliglassError(f"{name}: cannot be streamed ({reason})") from None


def to_rows(
    stream: Iterable[Mapping[str, Any]],
    image: str | None = None,
    prefix: str | None = None,
    suffix: str | None = None,
    names: Mapping[str, list[str]] | None = None,
) -> Iterator[tuple[Any, str, str | list[str]]]:
    """(picture, prefix, suffix or several that are right) of every row.

    Args:
        image, suffix: the columns; else those that commonly hold pictures, and captions, answers
            or class labels.
        prefix: a column; or the prompt itself, with other columns in braces: "answer en {q}";
            else "answer en" and the question, "caption en", or "answer en what is this?".
        names: of a column's classes, for numbers.

    Raises PaliglassError where no column fits, naming those that there are.
    """
    for row in stream:
        picture = image or _first(row, IMAGES, "a picture (--image)")
        answer = suffix or _first(row, (*CAPTIONS, *ANSWERS, *LABELS), "what is right (--suffix)")
        for column in (picture, answer):
            if column not in row:
                raise PaliglassError(f"there is no column {column!r}, but {', '.join(row)}")
        yield row[picture], _prompt(row, prefix, answer), _right(row, answer, names)


def _right(
    row: Mapping[str, Any], column: str, names: Mapping[str, list[str]] | None
) -> str | list[str]:
    """A row's right answer, or several with the one to learn first; "" for none."""
    value = row[column]
    if names and column in names and isinstance(value, int):
        known = names[column]
        value = known[value].replace("_", " ") if 0 <= value < len(known) else None
    if isinstance(value, dict):  # as lists of a struct's members come
        value = value.get("answer", next(iter(value.values()), None))
    given = value if isinstance(value, list | tuple) else [value]
    texts = (answer_text(one.get("answer") if isinstance(one, dict) else one) for one in given)
    right = [text for text in texts if text]
    if column not in CAPTIONS and len(right) > 1:
        told = answer_text(row.get("multiple_choice_answer"))
        first = right.index(told if told in right else most_frequent(right))
        right.insert(0, right.pop(first))
    return right if len(right) > 1 else "".join(right)


def _first(row: Mapping[str, Any], columns: Iterable[str], what: str) -> str:
    found = next((column for column in columns if column in row), None)
    if found is None:
        raise PaliglassError(f"no column is known to hold {what}; there are {', '.join(row)}")
    return found


def _prompt(row: Mapping[str, Any], prefix: str | None, answer: str) -> str:
    if prefix is not None:
        try:
            return str(row[prefix]) if prefix in row else prefix.format(**row)
        except (KeyError, IndexError, ValueError):
            raise PaliglassError(
                f"--prefix {prefix!r} names no column; there are {', '.join(row)}"
            ) from None
    if "question" in row:
        return answer_prompt(str(row["question"]))
    return caption_prompt() if answer in CAPTIONS else answer_prompt("what is this?")


def fetch(
    rows: Iterable[tuple[Any, str, str | list[str]]],
    folder: Path,
    limit: int | None = None,
    tell: Callable[[str], object] = lambda message: None,
) -> int:
    """Writes rows as pictures and `data.jsonl`, whole or not at all; returns how many.

    A row without a picture that can be read, or without an answer, is left out; `tell` gets one
    line about all of them. Raises PaliglassError where no row is left.
    """
    left_out: list[str] = []
    with new_folder(folder) as target:
        lines = []
        for number, (picture, prefix, suffix) in enumerate(islice(rows, limit)):
            if isinstance(picture, dict):  # not decoded: {"bytes": …, "path": …}
                picture = picture.get("bytes") or picture.get("path")
            if picture is None or not suffix:
                left_out.append(f"row {number} has no {'picture' if picture is None else 'answer'}")
                continue
            name = f"{number:06}.png"
            try:
                load_picture(picture).save(target / name, compress_level=1)
            except PictureError as error:
                left_out.append(f"row {number}: {error}")
                continue
            lines.append(to_line({"image": name, "prefix": prefix, "suffix": suffix}) + "\n")
        about = f"{len(left_out)} rows left out, the first: {left_out[0]}" if left_out else ""
        if not lines:
            raise PaliglassError("the stream holds no rows" + (f"; {about}" if about else ""))
        (target / FILE).write_text("".join(lines), encoding="utf-8")
    if about:
        tell(about)
    return len(lines)


def class_names(stream: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that is told to have some."""
    features = getattr(stream, "features", None) or {}
    return {
        column: list(feature.names)
        for column, feature in features.items()
        if getattr(feature, "names", None)
    }
