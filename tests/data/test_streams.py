"""Rows of the datasets library, as pictures and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from tests.tiny import noise_picture

from paliglass.cli import main
from paliglass.data.reading import open_examples
from paliglass.data.streams import class_names, fetch, open_stream, to_rows
from paliglass.errors import PaliglassError
from paliglass.pictures import load_picture

PICTURE = noise_picture(8, 6)


def rows_of(row: dict[str, Any], **columns: Any) -> list[tuple[str, Any]]:
    return [(prefix, suffix) for _, prefix, suffix in to_rows([row], **columns)]


def test_common_columns_are_known() -> None:
    image = {"image": PICTURE}
    assert rows_of(image | {"caption": ["a dog", "one dog"]}) == [
        ("caption en", ["a dog", "one dog"])
    ]
    asked = image | {"question": "how many?", "answers": [{"answer": "2"}, {"answer": "two"}]}
    assert rows_of(asked) == [("answer en how many?", ["2", "two"])]
    named = rows_of(image | {"label": 1}, names={"label": ["cat", "wild_dog"]})
    assert named == [("answer en what is this?", "wild dog")]


def test_columns_can_be_named() -> None:
    row = {"scan": PICTURE, "key": "total", "value": 12}
    found = rows_of(row, image="scan", prefix="answer en what is the {key}?", suffix="value")
    assert found == [("answer en what is the total?", "12")]
    assert rows_of(row, image="scan", prefix="key", suffix="value") == [("total", "12")]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"scan": PICTURE, "text": "a"}, {}, r"a picture \(--image\); there are scan, text"),
        ({"image": PICTURE, "note": "a"}, {}, r"what is right \(--suffix\); there are image, note"),
        ({"image": PICTURE, "text": "a"}, {"suffix": "x"}, "no column 'x', but image, text"),
        ({"image": PICTURE, "text": "a"}, {"prefix": "{x}"}, "names no column; there are image"),
    ],
)
def test_columns_that_are_not_there_are_named(
    row: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    with pytest.raises(PaliglassError, match=message):
        rows_of(row, **columns)


def test_what_is_fetched_is_what_finetune_reads(tmp_path: Path) -> None:
    stream = ({"image": PICTURE, "text": f"picture {i}"} for i in range(100))  # only begun
    assert fetch(to_rows(stream), tmp_path / "out", limit=3) == 3
    examples = open_examples(tmp_path / "out")
    assert [example.suffix for example in examples] == ["picture 0", "picture 1", "picture 2"]
    assert examples[0].images[0].is_file()
    with pytest.raises(PaliglassError, match="no rows"):
        fetch([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ([{"answer": "wolf"}, {"answer": "dog"}, {"answer": "dog"}], ["dog", "wolf", "dog"]),
        ({"answer": ["wolf", "dog", "dog"], "answer_id": [1, 2, 3]}, ["dog", "wolf", "dog"]),
        (["", None, "dog"], "dog"),
        ([], ""),
        (None, ""),
        (float("nan"), ""),
        ([None, {"answer": None}], ""),
        (2, "2"),
    ],
)
def test_answers_are_never_none(value: Any, right: Any) -> None:
    [(_, found)] = rows_of({"image": PICTURE, "question": "what?", "answers": value})
    assert found == right


def test_the_answer_that_the_data_calls_likeliest_is_learned() -> None:
    row = {"image": PICTURE, "question": "what?", "answers": ["dog", "dog", "wolf"]}
    [(_, found)] = rows_of({**row, "multiple_choice_answer": "wolf"})
    assert found == ["wolf", "dog", "dog"]


def test_a_class_that_has_no_name_is_none() -> None:
    assert rows_of({"image": PICTURE, "label": -1}, names={"label": ["cat"]})[0][1] == ""


def test_rows_without_picture_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        {"image": PICTURE, "question": "what?", "answers": ["dog"]},
        {"image": None, "question": "what?", "answers": ["dog"]},
        {"image": PICTURE, "question": "what?", "answers": []},
        {"image": b"no picture", "question": "what?", "answers": ["dog"]},
    ]
    said: list[str] = []
    assert fetch(to_rows(rows), tmp_path / "out", tell=said.append) == 1
    assert said == ["3 rows left out, the first: row 1 has no picture"]
    assert [e.suffix for e in open_examples(tmp_path / "out")] == ["dog"]


def test_rows_of_which_none_is_left_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PaliglassError, match="no rows; 1 rows left out, the first: row 0: "):
        fetch([(b"no picture", "ocr", "A")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_library_streams_local_files(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "caption": "a dog"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    stream = open_stream(str(tmp_path / "rows.jsonl"), None, "train")
    assert isinstance(stream, IterableDataset)
    assert fetch(to_rows(stream, names=class_names(stream)), tmp_path / "out") == 1
    (tmp_path / "rows.txt").write_text("")
    with pytest.raises(PaliglassError, match=r"rows\.txt: is none of \.json"):
        open_stream(str(tmp_path / "rows.txt"), None, "train")


def test_what_the_hub_holds_is_streamed(tmp_path: Path) -> None:
    """Parquet with pictures and class labels, as the hub's data sets are, by the command."""
    features = Features({"img": Image(), "label": ClassLabel(names=["hot_dog", "no_dog"])})
    rows = {"img": [PICTURE] * 3, "label": [0, 1, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["data", "fetch", str(tmp_path / "train.parquet"), str(out), "--limit", "2"])
    assert end.value.code == 0
    examples = open_examples(out)
    assert [example.suffix for example in examples] == ["hot dog", "no dog"]
    assert examples[0].prefix == "answer en what is this?"
    assert load_picture(examples[0].images[0]).size == PICTURE.size


def test_a_folder_of_pictures_is_streamed(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        PICTURE.save(tmp_path / "set" / label / "a.png")
    stream = open_stream(str(tmp_path / "set"), None, "train")
    assert sorted(row[2] for row in to_rows(stream, names=class_names(stream))) == ["cat", "dog"]
