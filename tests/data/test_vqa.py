"""VQAv2's questions with people's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.files import look, paint, write

from paliglass.data.reading import open_examples
from paliglass.errors import PaliglassError

QUESTION = {"question_id": 1, "image_id": 42, "question": "what is it?"}
NAME = "v2_mscoco_val2014_annotations.json"


def vqa(folder: Path, annotation: dict[str, Any], *questions: dict[str, Any]) -> Path:
    paint(folder / "COCO_val2014_000000000042.jpg", (4, 4))
    write(folder / NAME, {"annotations": [annotation]})
    path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    return write(path, {"questions": [QUESTION, *questions]})


def said(*answers: Any) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "told", "suffix"),
    [
        (said("wolf", "dog", "dog"), {"multiple_choice_answer": "wolf"}, "wolf"),
        (said("wolf", "dog", "dog"), {}, "dog"),  # the most frequent, not the first
        (said("wolf", "dog", "dog"), {"multiple_choice_answer": None}, "dog"),
        (["wolf", "dog", "dog"], {}, "dog"),
        (said("wolf", None, "", "dog", "dog"), {}, "dog"),
        (said(3, 3, 4), {}, "3"),
        (said("none"), {}, "none"),
    ],
)
def test_answers(tmp_path: Path, answers: Any, told: dict[str, Any], suffix: str) -> None:
    path = vqa(tmp_path, {"question_id": "1", "answers": answers, **told})
    (example,) = open_examples(path)
    assert example.images[0].name == "COCO_val2014_000000000042.jpg"
    assert (example.prefix, example.suffix) == ("answer en what is it?", suffix)
    assert "None" not in example.answers
    assert len(example.answers) == len(
        [a for a in answers if (a["answer"] if isinstance(a, dict) else a)]
    )


@pytest.mark.parametrize(
    "annotation",
    [
        {"question_id": 1, "answers": []},
        {"question_id": 1, "answers": None},
        {"question_id": 1, "answers": said(None, "", "  ")},
        {"question_id": 1, "answers": None, "multiple_choice_answer": None},
        {"question_id": 2, "answers": said("yes")},
    ],
)
def test_questions_without_an_answer_are_left_out(
    tmp_path: Path, annotation: dict[str, Any]
) -> None:
    path = vqa(tmp_path, annotation)
    examples, (found,) = look(path)
    assert examples == []
    assert (found.where, found.severity) == (f"{path}, questions[0]", "left out")
    with pytest.raises(PaliglassError, match=r"holds no examples; .*questions\[0\]"):
        open_examples(path)


@pytest.mark.parametrize(
    ("annotation", "question", "problem"),
    [
        ({"answers": said("a")}, QUESTION, 'annotations[0]: lacks "question_id"'),
        ({"question_id": [], "answers": said("a")}, QUESTION, "question_id is []"),
        ({"question_id": 1, "answers": "yes"}, QUESTION, "answers is"),
        ({"question_id": 1, "answers": [[1]]}, QUESTION, "answers[0]"),
        ({"question_id": 1, "answers": said("a")}, {"question_id": 3}, "questions[1]: lacks"),
        ({"question_id": 1, "answers": said("a")}, {**QUESTION, "question": 3}, "question is 3"),
        ({"question_id": 1, "answers": said("a")}, QUESTION, "question_id 1 is that of"),
    ],
)
def test_wrong_entries_are_named(
    tmp_path: Path, annotation: dict[str, Any], question: dict[str, Any], problem: str
) -> None:
    _, findings = look(vqa(tmp_path, annotation, question))
    assert problem in "\n".join(f"{f.where}: {f.problem}" for f in findings.of("wrong"))


def test_an_empty_question_is_left_out(tmp_path: Path) -> None:
    asked = {"question_id": 2, "image_id": 42, "question": " \n"}
    path = vqa(tmp_path, {"question_id": 2, "answers": said("yes")}, asked)
    examples, findings = look(path)
    assert examples == []
    assert "questions[1]" in findings[-1].where
    assert findings[-1].problem == "question is empty"


def test_a_number_that_two_pictures_have_is_told(tmp_path: Path) -> None:
    path = vqa(tmp_path, {"question_id": 1, "answers": said("yes")})
    paint(tmp_path / "COCO_train2014_000000000042.png", (4, 4))
    _, (found,) = look(path)
    assert (found.severity, "train2014_000000000042.png or COCO_val" in found.problem) == (
        "wrong",
        True,
    )


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.json", {"questions": [QUESTION]})
    with pytest.raises(PaliglassError, match="its answers are missing"):
        open_examples(path)
    write(tmp_path / "annotations.json", [])
    with pytest.raises(PaliglassError, match="is no JSON object"):
        open_examples(path)
    write(
        tmp_path / "annotations.json", {"annotations": [{"question_id": 1, "answers": said("a")}]}
    )
    with pytest.raises(PaliglassError, match="no such folder"):
        open_examples(path, images=tmp_path / "nowhere")
