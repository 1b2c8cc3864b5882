"""Typed records: every complaint has its place and the value that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliglass.errors import PaliglassError
from paliglass.formats.records import Id, decode, key_of, parse_json, read_json, read_lines


class Inner(msgspec.Struct):
    size: tuple[int, int]


class Outer(msgspec.Struct):
    id: Id
    box: list[float]
    inner: list[list[float]] | Inner | None = None


def test_a_record_is_typed_and_other_keys_are_passed_over() -> None:
    found = decode({"id": "7", "box": [1, 2.5], "more": {}}, Outer, "here")
    assert (found.id, found.box, found.inner) == ("7", [1.0, 2.5], None)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (3, "here: is no JSON object but 3"),
        ({"id": 1}, 'here: lacks "box"'),
        ({}, 'here: lacks "id", "box"'),
        ({"id": True, "box": []}, "here: id is true; it must be a number or text"),
        ({"id": 1, "box": None}, "here: box is null; it must be a list"),
        ({"id": 1, "box": [1, "x"]}, 'here: box[1] is "x"; it must be a number'),
        ({"id": 1, "box": [10**400]}, "here: Number out of range: box[0]"),
        (
            {"id": 1, "box": [], "inner": {"size": [1]}},
            "here: inner.size is [1]; it must be a list",
        ),
        ({"id": 1, "box": [], "inner": {"size": [1, 2.5]}}, "here: inner.size[1] is 2.5"),
        ({"id": 1, "box": [], "inner": {}}, "here: Object missing required field size: inner"),
        ({"id": 1, "box": "x" * 999}, "…; it must be a list"),
    ],
)
def test_what_is_wrong_is_named(value: Any, complaint: str) -> None:
    with pytest.raises(PaliglassError) as error:
        decode(value, Outer, "here", "this")
    assert complaint in str(error.value)
    assert str(error.value).endswith("; write this")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "ids",
    [
        (7, "7", 7.0, " 7 ", "007", "7.0"),
        (-7, "-7.0"),
        (0, "0", -0.0, "000"),
        (10**20, 1e20, "100000000000000000000"),
    ],
)
def test_numbers_and_strings_meet(ids: tuple[Id, ...]) -> None:
    assert len({key_of(number) for number in ids}) == 1


def test_strings_that_are_no_numbers_stay_apart() -> None:
    ids = ["v1", "v1.0", "v01", "1.0.0", "1.0", "1.00.0", "-1.0", "a.0", ""]
    assert len({key_of(text) for text in ids}) == len(ids)


@given(st.integers(), st.integers())
def test_other_numbers_do_not(a: int, b: int) -> None:
    assert (key_of(a) == key_of(str(b))) == (a == b)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "here: is not JSON"),
        ('{\n"a": }', "at line 2, column 6"),
        ("[" * 10**5, "here: is nested too deeply"),
        ("1" * 5000, "here: holds a number of thousands of digits"),
    ],
)
def test_what_is_no_json_is_named(text: str, complaint: str) -> None:
    with pytest.raises(PaliglassError) as error:
        parse_json(text, "here")
    assert complaint in str(error.value)


def test_lines_are_counted_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff\n\na\u2028b\r\n \nc".encode())
    assert [(where.rpartition(" ")[2], text.strip()) for where, text in read_lines(path)] == [
        ("3", "a\u2028b"),
        ("5", "c"),
    ]
    path.write_bytes(b"\xff\xfe" + "{}".encode("utf-16-le"))
    assert read_json(path) == {}
