"""Each picture gets its row, in order, whatever becomes of it or of its neighbours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scale.conftest import shape

from paliglass.errors import PromptError
from paliglass.formats.rle import decode_rle
from paliglass.scale.annotator import Annotator, Job
from paliglass.scale.opening import Opened
from paliglass.scale.rows import SCHEMA, to_record, to_row, to_table
from paliglass.scale.sources import entries
from paliglass.tasks.answering import TextTask
from paliglass.tasks.results import Found


def opened(job: Job, folder: Path) -> list[Opened]:
    square = job.square()
    return [square.open(entry) for entry in entries([str(folder)])]


@pytest.fixture
def some(job: Job, pictures: Path) -> list[Opened]:
    return opened(job, pictures)


def test_rows_say_what_the_friendly_interface_says(annotator: Annotator, some, pictures) -> None:
    rows = list(annotator.annotate(some))
    assert [row["id"] for row in rows] == [str(pictures / f"{n}.png") for n in range(6)]
    for number, row in enumerate(rows):
        if number == 2:
            assert row["error"] == f"{pictures / '2.png'}: is not a picture"
            assert row["objects"] is None
            continue
        found = annotator.model.detect(shape(number), annotator.job.labels, min_score=0.05)
        assert [item["label"] for item in row["objects"]] == found.labels
        assert found.labels == [["red circle", "blue square"][number % 2]]
        for item, expected in zip(row["objects"], found, strict=True):
            assert item["box"] == list(expected.box)
            assert item["score"] == pytest.approx(expected.score, abs=1e-5)
        assert (row["width"], row["height"]) == (160 + number, 128)
        assert row["error"] is None
        assert row["finish_reason"] == "stop"


def test_the_log_probability_is_of_all_that_was_said(job: Job, some) -> None:
    """Of a free answer its score is the geometric mean, before calibration."""
    annotator = Annotator(dataclasses.replace(job, prompt="what is red?"))
    for row in annotator.annotate(some[:2]):
        assert math.exp(row["log_prob"] / row["num_tokens"]) == pytest.approx(row["score"])
        assert row["task"] == "generate"  # which has no calibration


def test_a_table_keeps_all_of_the_rows(job: Job, annotator: Annotator, some, pictures) -> None:
    """Through Parquet's types and back, masks too."""
    segmenting = Annotator(dataclasses.replace(job, prompt="segment red circle"))
    rows = list(segmenting.annotate(some[:3]))
    again = to_table(rows).to_pylist()
    assert to_table(again).schema == SCHEMA
    record = to_record(again[0])
    found = Found.from_dict(record)
    [expected] = segmenting.model.segment(shape(0), "red circle", min_score=0.05)
    assert (found[0].mask == expected.mask).all()
    assert decode_rle(record["detections"][0]["mask"]).shape == (128, 160)
    assert again[2]["error"] is not None


def test_blocks_of_ray_are_the_same_rows(job: Job, annotator: Annotator, some, pictures) -> None:
    import pyarrow as pa

    from paliglass.scale.sources import MANIFEST

    manifest = [entry._asdict() for entry in entries([str(pictures)])]
    block = job.square()(pa.Table.from_pylist(manifest, MANIFEST))
    assert annotator(block).to_pylist() == to_table(annotator.annotate(some)).to_pylist()


def test_where_the_model_fails_on_one_the_others_have_their_answers(
    job: Job, some, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotator = Annotator(dataclasses.replace(job, prompt="caption en"))
    expected = list(annotator.annotate(some))
    made = TextTask.result

    def result(task, pictures, completions):
        if pictures[0].size == (164, 128):
            raise RuntimeError("the model stumbled")
        return made(task, pictures, completions)

    monkeypatch.setattr(TextTask, "result", result)
    rows = list(annotator.annotate(some))
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert rows[4]["error"].endswith("4.png: RuntimeError: the model stumbled")
    for number in (0, 1, 3, 5):
        assert rows[number]["answer"] == expected[number]["answer"]
        assert rows[number]["error"] is None


def test_a_row_that_cannot_be_made_is_one_with_an_error(
    annotator: Annotator, some, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(about, size, *found):
        if size == (164, 128):
            raise RuntimeError("no mask")
        return to_row(about, size, *found)

    monkeypatch.setattr("paliglass.scale.annotator.to_row", failing)
    rows = list(annotator.annotate(some))
    assert [row["id"] for row in rows] == [one.id for one in some]
    assert rows[4]["error"].endswith("4.png: RuntimeError: no mask")
    assert [n for n, row in enumerate(rows) if row["error"] is None] == [0, 1, 3, 5]


def test_what_fails_before_the_model_is_not_taken_for_a_picture(annotator, some) -> None:
    """A source that breaks off must not look like one that has ended."""

    def breaking() -> Iterator[Opened]:
        yield some[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(annotator.annotate(breaking()))


def test_sampling_does_not_depend_on_who_else_is_asked(job: Job, some) -> None:
    """A picture's random numbers are those of its place in the manifest."""
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 8}
    annotator = Annotator(dataclasses.replace(job, prompt="caption en", options=options))
    together = [row["answer"] for row in annotator.annotate(some)]
    alone = [row["answer"] for one in some for row in annotator.annotate([one])]
    assert together == alone


def test_a_prompt_without_a_label_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(PromptError, match="detect needs at least one label"):
        Job("detect ;")


def test_a_folder_that_was_trained_on_is_another_model(tmp_path: Path) -> None:
    """Under the same name: rows of both must not lie together."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"some")
    before = Job("ocr", str(tmp_path)).settings()
    assert Job("ocr", str(tmp_path)).settings() == before
    weights.write_bytes(b"others")
    assert Job("ocr", str(tmp_path)).settings() != before
    adapted = Job("ocr", loading={"adapter": str(tmp_path)}).settings()
    assert adapted["weights"] != Job("ocr").settings()["weights"]


@pytest.mark.parametrize(
    ("prompt", "task"),
    [("ocr", "read"), ("cap en", "caption"), ("answer en why?", "ask"), ("anything", "generate")],
)
def test_tasks_have_the_names_of_the_commands(prompt: str, task: str) -> None:
    assert Job(prompt).task == task
