"""Tables for spreadsheets, and from them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from paliglass.errors import PaliglassError
from paliglass.formats.csv_table import read_rows, to_csv


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "=cmd|'/c calc'!A0"])
def test_no_cell_is_a_formula(text: str) -> None:
    answers = [{"file": text, "task": "t", "prompt": text, "answer": text, "score": 0.5}]
    boxes = [
        {"file": text, "width": 4, "height": 3,
         "detections": [{"label": text, "score": 0.5, "box": [-1.5, 0, 4, 3]}]}
    ]  # fmt: skip
    for records in (answers, boxes):
        _, row = csv.reader(io.StringIO(to_csv(records), newline=""))
        assert [cell for cell in row if cell[:1] in "=+@\t\r"] == []
        assert f"'{text}" in row
    assert row[-4] == "-1.5"  # a number stays one


def test_a_carriage_return_does_not_end_a_row() -> None:
    text = to_csv([{"file": "a.png", "answer": "one\rtwo\r\nthree\r"}])
    [row] = csv.DictReader(io.StringIO(text, newline=""))
    assert row["answer"] == "one\ntwo\nthree\n"


@pytest.mark.parametrize("text", ["a dog", "a - b", "1 + 1 = 2", "'", ""])
def test_other_text_stays_as_it_is(text: str) -> None:
    [row] = csv.DictReader(io.StringIO(to_csv([{"file": "a.png", "answer": text}])))
    assert row["answer"] == text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_have_their_line(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    rows = [["file_name", "text"], ["a.png", "two\nlines"], ["b.png", "one"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_text("\ufeff" + text.getvalue(), encoding="utf-8", newline="")
    found = list(read_rows(path))
    assert [row for _, row in found] == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [where.rpartition(" ")[2] for where, _ in found] == ["3", "4"]


def test_blanks_and_empty_cells_at_the_end_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('file_name, text\na.png, "a, b"\nb.png,c,, \n')
    found = [row for _, row in read_rows(path)]
    assert found == [{"file_name": "a.png", "text": "a, b"}, {"file_name": "b.png", "text": "c"}]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 200_000)
    with pytest.raises(PaliglassError, match=r"a\.csv, line \d: is no CSV"):
        list(read_rows(path))
