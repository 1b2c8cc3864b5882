"""JSON lines: PaliGemma's own form and the results of this package's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.files import lines, look, paint, write

from paliglass import Box, Detection, load
from paliglass.data.reading import open_examples
from paliglass.errors import PaliglassError
from paliglass.evaluation.judge import to_questions
from paliglass.evaluation.objects import mask_iou, masks_in
from paliglass.tasks.boxes import parse_boxes
from paliglass.tasks.results import Found, Segment

DOG = "<loc0000><loc0000><loc0512><loc0512> dog"
CAT = "<loc0512><loc0512><loc1023><loc1023> cat"


def row(prefix: str = "caption en", suffix: Any = "a dog", image: Any = "a.png") -> dict[str, Any]:
    return {"image": image, "prefix": prefix, "suffix": suffix}


def test_lines_are_examples(tmp_path: Path) -> None:
    rows = [
        row(),
        row("answer en what?", ["yes", "yeah"], "sub/b.png"),
        row(image=["a.png", "b.png"]),
    ]
    path = write(tmp_path / "data.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    first, second, third = open_examples(path)
    assert (first.images, first.prefix, first.suffix) == (
        (tmp_path / "a.png",),
        "caption en",
        "a dog",
    )
    assert first.where == f"{path}, line 1"
    assert (second.suffix, second.answers) == ("yes", ("yes", "yeah"))
    assert second.where == f"{path}, line 3"
    assert third.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert open_examples(tmp_path) == [first, second, third]  # a folder with a data.jsonl


@pytest.mark.parametrize(
    "data",
    [
        "\ufeff{}".encode(),
        "\ufeff{}".encode("utf-16-le"),
        "\ufeff{}".encode("utf-16-be"),
        b"{}",
    ],
    ids=["utf-8 with a mark", "utf-16-le", "utf-16-be", "plain"],
)
def test_marks_at_the_beginning_are_passed_over(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.jsonl"
    encoding = (
        "utf-16-le" if data[:2] == b"\xff\xfe" else "utf-16-be" if data[1:2] == b"\xff" else "utf-8"
    )
    text = json.dumps(row(suffix="häuser"), ensure_ascii=False)
    path.write_bytes(data.replace("{}".encode(encoding), text.encode(encoding)))
    (example,) = open_examples(path)
    assert example.suffix == "häuser"


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_with_a_line_feed_alone(tmp_path: Path, letter: str) -> None:
    text = json.dumps(row(suffix=f"one{letter}two"), ensure_ascii=False)
    path = write(tmp_path / "data.jsonl", f"{text}\r\n{text}\n")
    assert [e.suffix for e in open_examples(path)] == [f"one{letter}two"] * 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no examples"),
        ("\n{}", 'line 2: lacks "image", "prefix", "suffix"; write {'),
        ('{"image": 1, "prefix": "a", "suffix": "b"}', "line 1: image is 1; it must be text"),
        ('{"image": "a.png", "prefix": null, "suffix": "b"}', "line 1: prefix is null"),
        ('{"image": "a.png", "prefix": "a", "suffix": []}', "line 1: suffix is a list without"),
        ('{"image": "a.png", "prefix": "a", "suffix": ["b", 2]}', "line 1: suffix[1] is 2"),
        ('{"image": "", "prefix": "a", "suffix": "b"}', "line 1: image is empty"),
        ('{"image": [], "prefix": "a", "suffix": "b"}', "line 1: image is empty"),
        ("{", "line 1: is not JSON"),
        ("[]", "line 1: is no JSON object"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        ("9" * 5000, "line 1: holds a number of thousands of digits"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "data.jsonl", text)
    with pytest.raises(PaliglassError) as error:
        open_examples(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    import os

    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\x80\x81")
    with pytest.raises(PaliglassError, match=r"data\.jsonl: is no text in UTF-8"):
        open_examples(path)
    os.mkfifo(tmp_path / "pipe.jsonl")  # would be waited for without end
    with pytest.raises(PaliglassError, match=r"pipe\.jsonl: is no file"):
        open_examples(tmp_path / "pipe.jsonl")
    with pytest.raises(PaliglassError, match="no such file"):
        open_examples(tmp_path / "nothing.jsonl")
    with pytest.raises(PaliglassError, match=r"is none of \.jsonl"):
        open_examples(write(tmp_path / "data.txt", "dog"))


@pytest.mark.parametrize(
    ("prefix", "suffix", "said"),
    [
        (" caption en\n", "a dog", ("caption en", "a dog")),
        ("<image>caption en", "a dog", ("caption en", "a dog")),
        ("<image><image> <bos>caption en", "a dog", ("caption en", "a dog")),
        ("caption en", " a dog<eos>", ("caption en", "a dog")),
        ("caption en", "a dog <eos> \n", ("caption en", "a dog")),
        ("caption en", "<bos>a dog<eos><pad><pad>", ("caption en", "a dog")),
    ],
)
def test_what_processors_put_there_is_taken_off(
    tmp_path: Path, prefix: str, suffix: str, said: tuple[str, str]
) -> None:
    """The same in training and evaluation, which both read these examples; a check tells."""
    (example,), (found,) = look(lines(tmp_path / "data.jsonl", row(prefix, suffix)))
    assert (example.prefix, example.suffix) == said
    assert found.severity == "odd"


@pytest.mark.parametrize(
    ("prefix", "suffix", "problem"),
    [
        ("caption en", "a <eos> dog", "the suffix holds <eos>"),
        ("caption en", "a <image> dog", "the suffix holds <image>"),
        ("caption en", ["a dog", "a <bos> dog"], "the suffix holds <bos>"),
        ("caption en", "a dog <pad> there", "the suffix holds <pad>"),
        ("caption <image> en", "a dog", "the prefix holds <image>"),
        ("caption en", "a \ud800 dog", "half a character"),
        ("caption \udfff en", "a dog", "half a character"),
        ("<OD>", "dog<loc_118><loc_2><loc_300><loc_400>", "Florence-2's form"),
        ("<MORE_DETAILED_CAPTION>", "a dog", "Florence-2's form"),
        ("detect dog", "dog<loc_118><loc_2><loc_300><loc_400>", "<loc_118>, Florence-2's form"),
        ("detect ;", DOG, "names nothing"),
        ("detect", "", "names nothing"),
        ("segment  ; ;", "", "names nothing"),
        ("detect dog", f"{DOG} ; <loc9999> dog", "'<loc9999> dog' is no box"),
        ("detect dog", "dog", "'dog' is no box"),
        ("detect dog", f"dog {DOG}", "is no box"),
        ("detect dog", f"<loc0001>{DOG}", "is no box"),
        ("detect dog", f"{DOG} <loc0001>", "is no box"),
        ("detect dog ; cat", f"{DOG}, {CAT}", "is no box"),
        ("detect dog", DOG.replace("<loc0", "<loc"), "is no box"),
        ("segment dog", DOG.replace(" dog", "<seg128>" * 16), "is no box"),
        ("detect dog", "<loc0512><loc0000><loc0000><loc0512> dog", "is no box"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, prefix: str, suffix: Any, problem: str
) -> None:
    path = lines(tmp_path / "data.jsonl", row(), row(prefix, suffix), row("ocr", "STOP"))
    examples, (found,) = look(path)
    assert [example.task for example in examples] == ["caption", "ocr"]  # the check goes on
    assert found.where == f"{path}, line 2"
    assert found.severity == "wrong"
    assert problem in found.problem
    with pytest.raises(PaliglassError, match=r"data\.jsonl, line 2: "):
        open_examples(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (row(suffix=None), "suffix is null"),
        (row(image=None), "image is null"),
        (row(suffix="  "), "the suffix is empty"),
        (row(suffix=[]), "without an answer"),
        (row("ocr", [None, ""]), "without an answer"),
        (row("ocr", [" ", "\n"]), "without an answer"),
        (row("answer en what?", ""), "the suffix is empty"),
    ],
)
def test_what_says_nothing_is_left_out(tmp_path: Path, line: Any, problem: str) -> None:
    _, (found,) = look(lines(tmp_path / "data.jsonl", row(), line))
    assert (found.severity, problem in found.problem) == ("left out", True)
    with pytest.raises(PaliglassError, match=r"holds no examples; .*line 1: "):
        open_examples(lines(tmp_path / "alone.jsonl", line))
    said: list[str] = []
    assert len(open_examples(tmp_path / "data.jsonl", tell=said.append)) == 1
    assert len(said) == 1
    assert "line 2" in said[0]


def test_answers_that_are_null_are_passed_over(tmp_path: Path) -> None:
    (example,) = open_examples(
        lines(tmp_path / "data.jsonl", row(suffix=[None, " ", "a dog", "", "dog"]))
    )
    assert (example.suffix, example.answers) == ("a dog", ("a dog", "dog"))


def test_nothing_can_be_right(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "data.jsonl", row("ocr", ""), row("detect dog", ""), row("list cracks", "")
    )
    assert [e.suffix for e in open_examples(path)] == ["", "", ""]


@pytest.mark.parametrize(
    "part",
    [
        "<loc0100><loc0100><loc0100><loc0200> dog",
        "<loc0100><loc0100><loc0200><loc0100> dog",
        "<loc1023><loc0100><loc1023><loc0200> dog",
    ],
)
def test_boxes_without_area_are_ignored(tmp_path: Path, part: str) -> None:
    path = lines(
        tmp_path / "data.jsonl",
        row("detect dog", f"{DOG} ; {part}"),
        row("detect dog", part, "b.png"),
    )
    (both, alone), findings = look(path)
    assert [found.severity for found in findings] == ["left out"] * 2
    assert (both.suffix, both.is_partial) == (DOG, False)
    assert (alone.suffix, alone.is_partial) == ("", True)


def test_several_lines_for_one_prompt_are_taken_together(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "data.jsonl",
        row("detect dog ; cat", DOG),
        row("detect dog ; cat", "", "b.png"),
        row("detect dog ; cat", f"{CAT} ; {DOG}"),
        row("caption en", "a dog"),
        row("caption en", "one dog"),
    )
    examples, (found,) = look(path)
    assert [e.suffix for e in examples] == [f"{DOG} ; {CAT}", "", "a dog", "one dog"]
    assert found.where == f"{path}, line 3"
    assert "line 1" in found.problem


@pytest.mark.parametrize(
    ("prompt", "picture"),
    [
        ("detect dog;cat", "a.png"),
        ("detect  dog ;  cat ;", "a.png"),
        ("detect Dog ; CAT", "a.png"),
        ("<image>detect dog ; cat\n", "a.png"),
        ("detect dog ; cat", "./a.png"),
        ("detect dog ; cat", "sub/../a.png"),
        ("detect dog ; cat", ["a.png"]),
    ],
)
def test_one_prompt_may_be_spelled_in_several_ways(
    tmp_path: Path, prompt: str, picture: Any
) -> None:
    path = lines(tmp_path / "data.jsonl", row("detect dog ; cat", DOG), row(prompt, CAT, picture))
    (example,), _ = look(path)
    assert (example.prefix, example.suffix) == ("detect dog ; cat", f"{DOG} ; {CAT}")
    (question,) = to_questions(open_examples(path))
    assert question.references == (example.suffix,)
    alone, _ = look(lines(path, row(prompt, CAT, picture)))
    assert alone[0].prefix.casefold() == "detect dog ; cat"  # as `detect` asks for it


@pytest.mark.parametrize(
    ("prefix", "suffix", "read", "problem"),
    [
        ("detect dog", [DOG, DOG.replace("0000", "0100", 1)], 2, "taken together"),
        ("detect dog", DOG.replace(" dog", f"{'<seg001>' * 16} dog"), 1, "has a mask"),
        ("Detect dog", DOG, 1, "begins with 'Detect'"),
        ("CAPTION en", "a dog", 0, "begins with 'CAPTION'"),
        ("", "a dog", 0, "the prefix is empty"),
    ],
)
def test_what_is_odd_is_told(
    tmp_path: Path, prefix: str, suffix: Any, read: int, problem: str
) -> None:
    (example,), (found,) = look(lines(tmp_path / "data.jsonl", row(prefix, suffix)))
    assert (found.severity, problem in found.problem) == ("odd", True)
    assert len(parse_boxes(example.suffix)) == read
    assert "<seg" not in example.suffix


def results(path: Path, *items: Any, **changes: Any) -> Path:
    found = Found(items, 200, 100).to_dict()
    record = {"file": "a.png", "task": "t", "prompt": "detect dog", "model": "mini", **found}
    return lines(path, {**record, **changes})


def test_results_of_the_tasks_are_read(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    path = results(tmp_path / "results.jsonl", Detection("dog", Box(0, 0, 100, 50), 0.9))
    (example,), findings = look(tmp_path)
    assert not findings
    assert (example.prefix, example.suffix) == ("detect dog", DOG)
    assert example.images == (tmp_path / "a.png",)
    words = {"file": "a.png", "task": "caption", "prompt": "caption en", "answer": "a dog"}
    lines(path, words)
    (example,) = open_examples(path)
    assert (example.prefix, example.suffix) == ("caption en", "a dog")


def test_masks_of_results_are_read(tmp_path: Path) -> None:
    codec = load("mini").mask_codec
    mask = np.zeros((100, 200), bool)
    mask[20:80, 30:120] = True
    thing = Segment("dog", Box(30, 20, 120, 80), mask, 0.9)
    path = results(tmp_path / "results.jsonl", thing, prompt="segment dog")
    (example,) = open_examples(path, task="segment", codec=codec)
    [(label, found)] = masks_in(example.suffix, codec, 100, 200)
    assert label == "dog"
    assert mask_iou(found, mask) > 0.95
    with pytest.raises(PaliglassError, match="a model with a mask codec"):
        open_examples(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"width": 0}, "width and height must be above 0"),
        ({"detections": [{"label": "dog", "box": [1, 2, 3]}]}, "must be a list of 4"),
        ({"detections": [{"label": "dog", "box": [1, 2, 3, "x"]}]}, "box[3]"),
        ({"file": 3}, "file is 3"),
        ({"detections": None}, "answer is null"),
    ],
)
def test_wrong_results_are_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = results(tmp_path / "results.jsonl", **changes)
    _, (found,) = look(path)
    assert found.where == f"{path}, line 1"
    assert problem in found.problem
