"""VQAv2's JSON → examples: `answer en …`, with all that people answered."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paliglass.data.example import Example, Findings
from paliglass.errors import PaliglassError
from paliglass.formats.coco import entries
from paliglass.formats.records import decode, key_of, read_json
from paliglass.formats.vqa import VqaAnnotation, VqaAnswer, VqaQuestion
from paliglass.pictures import SUFFIXES
from paliglass.tasks.prompts import answer_prompt

__all__ = ["MAX_ANSWERS", "answer_text", "most_frequent", "read_vqa"]

MAX_ANSWERS = 10  # VQAv2 has ten a question


def read_vqa(
    path: Path, content: dict[str, Any], folder: Path, findings: Findings
) -> Iterator[Example]:
    """The questions of a file, and the answers of annotations.json (or …annotations….json) beside.

    content: what is in the file. The most frequent answer is the one to train on. A picture is the
    one in `folder` whose name ends with its number.
    """
    beside = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if beside == path or not beside.is_file():
        beside = path.with_name("annotations.json")
    if not beside.is_file():
        raise PaliglassError(f"{path}: its answers are missing; put annotations.json beside it")
    answers = _answers(beside, findings)
    numbered = _numbered(folder)
    seen: dict[str, str] = {}
    for where, value in entries(path, content, "questions"):
        with findings.at(where):
            question = decode(value, VqaQuestion, where)
            number, image = key_of(question.question_id), key_of(question.image_id)
            if seen.setdefault(number, where) != where:
                raise PaliglassError(f"{where}: question_id {number} is that of {seen[number]} too")
            given = answers.get(number)
            if not given:
                what = "has no answer to it" if given is None else "has an empty answer to it"
                findings.left_out(where, f"{beside.name} {what}")
                continue
            if not question.question.strip():
                findings.left_out(where, "question is empty")
                continue
            file, *others = numbered.get(image, [folder / f"{image}.jpg"])
            if others:
                raise PaliglassError(
                    f"{where}: image_id {image} may be {file.name} or {others[0].name}"
                )
            prompt = answer_prompt(" ".join(question.question.split()))
            yield Example((file,), prompt, given[0], where, tuple(given[1:]))


def _answers(path: Path, findings: Findings) -> dict[str, list[str]]:
    """Question → its likeliest answer, then all; nothing where none was given."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise PaliglassError(f"{path}: is no JSON object; it is to be VQAv2's")
    answers: dict[str, list[str]] = {}
    for where, value in entries(path, content, "annotations"):
        with findings.at(where):
            found = decode(value, VqaAnnotation, where)
            number = key_of(found.question_id)
            texts = (a.answer if isinstance(a, VqaAnswer) else a for a in found.answers or ())
            given = [text for text in map(answer_text, texts) if text][:MAX_ANSWERS]
            likeliest = answer_text(found.multiple_choice_answer) or most_frequent(given)
            if number in answers:
                raise PaliglassError(f"{where}: question_id {number} is answered already")
            answers[number] = [likeliest, *given] if given and likeliest else []
    return answers


def answer_text(value: Any) -> str:
    """An answer as a data set has it, as text; "" for none."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).strip()


def most_frequent(answers: list[str]) -> str:
    """The answer that most gave; of equals, the first. "" of none."""
    return Counter(answers).most_common(1)[0][0] if answers else ""


def _numbered(folder: Path) -> dict[str, list[Path]]:
    """Pictures by the number at the end of their name."""
    if not folder.is_dir():
        raise PaliglassError(f"{folder}: no such folder")
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and (match := re.search(r"(\d{1,18})$", file.stem)):
            found[str(int(match[1]))].append(file)
    return found
