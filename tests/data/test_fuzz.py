"""Whatever a file holds, it is read, or refused with a PaliglassError; nothing else is raised.

Documents that are right but for some values anywhere in them, and bytes that are anything.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.files import paint

from paliglass import load
from paliglass.data.example import Findings
from paliglass.data.reading import open_examples
from paliglass.errors import PaliglassError
from paliglass.formats.rle import decode_rle

few = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BOX = "<loc0000><loc0000><loc0512><loc0512>"
WORDS = st.sampled_from(
    [
        *("", "a", "1", "nan", "\ud800", "\u2028", "\x00", "a\\b", "../a.png", "a" * 300, "a;b"),
        *(
            "detect",
            "detect ;",
            "segment a",
            "<image>",
            "<eos>",
            "<loc_1>",
            BOX,
            f"{BOX} a ; {BOX}",
        ),
    ]
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e308, math.inf, -math.inf, math.nan, -0.0]),
    st.integers(-300, 300),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["id", "size", "counts", "answer", "bbox"]), inner),
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A document with up to three of its values replaced, or taken out."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        parents: list[Any] = []

        def collect(value: Any, parents: list[Any] = parents) -> None:
            if isinstance(value, dict | list) and value:
                parents.append(value)
                for child in value.values() if isinstance(value, dict) else value:
                    collect(child)

        collect(document)
        if not parents:
            break
        parent = draw(st.sampled_from(parents))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw(st.sampled_from(keys))
        if draw(st.integers(0, 5)):
            parent[key] = draw(VALUES)
        else:
            del parent[key]
    return document


@pytest.fixture(scope="module")
def codec():
    return load("mini").mask_codec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "a.png", (40, 30), orientation=6)
    paint(tmp_path / "images" / "1.png", (40, 30))
    return tmp_path


def read(path: Path, **how: Any) -> None:
    """By a check and by a run: they agree on what is wrong."""
    findings = Findings()
    for options in ({"findings": findings}, {}):
        try:
            open_examples(path, **how, **options)
        except PaliglassError as error:
            message = str(error)
            assert "\n" not in message.strip("\n") or len(message) < 2000
        else:
            assert options or not findings.of("wrong")


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 30, "height": 40},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 1, "name": "dog", "supercategory": "none"}, {"id": "2", "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 9.5], "iscrowd": 0,
         "segmentation": [[1, 2, 21, 2, 21, 11]]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 40, 30],
         "segmentation": {"size": [30, 40], "counts": [10, 500, 690]}},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [3, 3, 5, 5], "iscrowd": 1,
         "segmentation": {"size": [30, 40], "counts": "0c12d"}},
    ],
}  # fmt: skip


@few
@given(changed(COCO), st.sampled_from(["detect", "segment"]))
def test_coco(folder: Path, codec: Any, document: Any, task: str) -> None:
    read(write(folder / "coco.json", document), task=task, codec=codec)


CAPTIONS = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 1, "caption": "one dog"}],
    "categories": [],
}


@few
@given(changed(CAPTIONS))
def test_captions(folder: Path, document: Any) -> None:
    read(write(folder / "captions.json", document))


LINES = [
    {"image": "a.png", "prefix": "caption en", "suffix": "a dog"},
    {"image": ["a.png", "b.png"], "prefix": "answer en what?", "suffix": ["a", "b"]},
    {"image": "a.png", "prefix": "detect a ; b", "suffix": f"{BOX} a ; {BOX} b"},
    {"image": "a.png", "prefix": "detect a ; b", "suffix": f"{BOX} a"},
    {"image": "a.png", "prefix": "segment a", "suffix": f"{BOX}{'<seg001>' * 16} a"},
]
RESULTS = [
    {"file": "a.png", "prompt": "caption en", "answer": "a dog", "score": 0.5},
    {"file": "a.png", "prompt": "segment a", "width": 4, "height": 3, "detections": [
        {"label": "a", "box": [0, 0, 4, 3], "mask": {"size": [3, 4], "counts": "02:"}},
        {"label": "a", "box": [0, 0, 4, 3], "mask": {"size": [3, 4], "counts": [2, 10]}},
    ]},
]  # fmt: skip
METADATA = [
    {"file_name": "a.png", "text": "a dog"},
    {"file_name": "a.png", "prefix": "ocr", "suffix": "A"},
    {"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": ["dog"]}},
]


@few
@given(
    st.sampled_from(["data.jsonl", "results.jsonl", "metadata.jsonl"]).flatmap(
        lambda name: st.tuples(
            st.just(name),
            changed({"data.jsonl": LINES, "results.jsonl": RESULTS}.get(name, METADATA)),
        )
    )
)
def test_json_lines(folder: Path, codec: Any, case: tuple[str, Any]) -> None:
    name, rows = case
    rows = rows if isinstance(rows, list) else [rows]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read(folder if name == "metadata.jsonl" else path, task="segment", codec=codec)
    path.unlink()


QUESTIONS = {"questions": [{"question_id": 1, "image_id": 1, "question": "what?"}]}
ANSWERS = {
    "annotations": [
        {"question_id": 1, "answers": [{"answer": "a"}, "b"], "multiple_choice_answer": "a"}
    ]
}


@few
@given(changed(QUESTIONS), changed(ANSWERS))
def test_vqa(folder: Path, questions: Any, answers: Any) -> None:
    write(folder / "annotations.json", answers)
    read(write(folder / "questions.json", questions), images=folder / "images")


YOLO = {"names": ["dog", "cat"], "train": "images", "val": ["images"], "path": ".", "nc": 2}
LABELS = "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"
LINE = st.lists(st.one_of(NUMBERS.map(str), WORDS, st.just("0.5")), min_size=1, max_size=9).map(
    " ".join
)


@few
@given(changed(YOLO), st.lists(LINE, max_size=3), st.sampled_from(["detect", "segment"]))
def test_yolo(folder: Path, codec: Any, document: Any, labels: list[str], task: str) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    text = LABELS + "\n".join(labels)
    (folder / "labels" / "1.txt").write_text(text, encoding="utf-8", errors="replace")
    read(write(folder / "data.yaml", document), task=task, codec=codec)


NAMES = ["a.jsonl", "results.jsonl", "a.json", "data.yaml", "metadata.csv", "metadata.jsonl"]


@few
@given(
    st.sampled_from(NAMES),
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(st.sampled_from(list("{}[]\":,\n'\\;-0aé\x00\ufeff\t")), max_size=40).map(
            lambda letters: "".join(letters).encode()
        ),
        st.sampled_from([b"[" * 10**4, b'{"a":' * 10**4, b"9" * 5000, b"\xff\xfe{", b"names: *a"]),
    ),
)
def test_any_bytes(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    read(folder if name.startswith("metadata") else path)
    path.unlink()


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(-3, 40), st.integers(-3, 40)),
    st.one_of(
        st.text(max_size=30),
        st.text(alphabet=[chr(48 + i) for i in range(64)], max_size=30),
        st.lists(st.integers(-5, 2**70), max_size=10),
    ),
)
def test_run_lengths(size: tuple[int, int], counts: Any) -> None:
    try:
        mask = decode_rle({"size": size, "counts": counts})
    except ValueError:
        return
    assert mask.shape == size
