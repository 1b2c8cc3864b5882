"""CSV: tables read row by row, and results written as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paliglass.errors import PaliglassError
from paliglass.formats.records import read_text

__all__ = ["ANSWER_COLUMNS", "BOX_COLUMNS", "read_rows", "to_csv"]

ANSWER_COLUMNS = ("file", "task", "prompt", "answer", "score")
BOX_COLUMNS = ("file", "width", "height", "label", "score", "x0", "y0", "x1", "y1")
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """(file and line, row) of a table with a header; its columns may be apart by `;` or tabs too.

    A column that a row lacks is None; blanks before a cell and empty cells beyond the header count
    for nothing. Raises PaliglassError, also for a row with more cells than the header, as text with
    commas that is not quoted has, which would be cut at the first.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = "," if "," in header else next((d for d in ";\t" if d in header), ",")
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise PaliglassError(f"{path}: has two columns {twice[0]!r}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if any(cell.strip() for cell in row.pop(None, ())):
                raise PaliglassError(
                    f"{where}: has more cells than the header's {len(names)}; text that holds "
                    f"{delimiter!r} stands in quotes"
                )
            yield where, {name.strip(): cell for name, cell in row.items()}
    except csv.Error as error:
        raise PaliglassError(f"{path}, line {reader.line_num}: is no CSV ({error})") from None


def to_csv(records: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    """A line for each answer, or for each thing found; edges in pixels. Masks have no column.

    Text that a spreadsheet would take for a formula has a ' before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for record in records:
        found = record.get("detections")
        if header:
            writer.writerow(ANSWER_COLUMNS if found is None else BOX_COLUMNS)
            header = False
        if found is None:
            writer.writerow([_inert(record.get(column, "")) for column in ANSWER_COLUMNS])
            continue
        start = [_inert(record["file"]), record["width"], record["height"]]
        writer.writerows([*start, _inert(i["label"]), i["score"], *i["box"]] for i in found)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet computes, with line feeds for its line breaks."""
    if not isinstance(value, str):
        return value
    value = "\n".join(value.replace("\r\n", "\n").split("\r"))  # csv.writer leaves \r bare
    return f"'{value}" if value.startswith(_FORMULA) else value
