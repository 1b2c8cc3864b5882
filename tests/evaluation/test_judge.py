"""The one way from examples to scores, with a model that answers as it is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config

from paliglass import PaliGemma
from paliglass.data.example import Example
from paliglass.data.reading import open_examples
from paliglass.data.rows import Rows
from paliglass.errors import PaliglassError, PictureError
from paliglass.evaluation.cases import Question, Score
from paliglass.evaluation.judge import (
    allowed_labels,
    answer,
    longest_reference,
    refuse_unscorable,
    remarks,
    to_questions,
)
from paliglass.evaluation.metrics import overall, score
from paliglass.generation import Completion, Request
from paliglass.pictures import PreparedPicture
from paliglass.tasks.grammar import ObjectGrammar, ObjectState

DOG = "<loc0000><loc0000><loc0512><loc0512> dog"
CAT = "<loc0512><loc0512><loc1023><loc1023> cat"


class Parrot(PaliGemma):
    """Says what it is told to each prompt, as far as the limit and the grammar let it."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__(tiny_model(worded_config()), tiny_processor())
        self.answers = answers
        self.asked: list[Request] = []

    def complete(
        self, requests: Iterable[Request], batch_size: int = 8, raises: bool = True
    ) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            ids = self.processor.encode_suffix(self.answers[request.prompt])[:-1]
            if request.constraint is not None:
                try:
                    grammar_of(request).read(ids)
                except KeyError:
                    ids = []
            kept = ids[: request.max_new_tokens]
            yield Completion(
                kept, [-0.1] * len(kept), "stop" if len(kept) == len(ids) else "length"
            )


def grammar_of(request: Request) -> ObjectGrammar:
    assert isinstance(request.constraint, ObjectState)
    return request.constraint.grammar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise_picture(40, 30).save(tmp_path / "a.png")
    noise_picture(40, 30, seed=1).save(tmp_path / "b.png")
    return tmp_path


def example(folder: Path, prefix: str, suffix: str, *images: str, **more: Any) -> Example:
    paths = tuple(folder / name for name in images or ("a.png",))
    return Example(paths, prefix, suffix, "line 1", **more)


def judged(model: PaliGemma, examples: Sequence[Example], **options: Any) -> dict[str, float]:
    """Scores by task and metric, and what a run is steered by."""
    cases = answer(model, to_questions(examples), **options)
    found = {name: value.score for name, value in score(cases, None).items()}
    return found | {"overall": overall(cases, None)}


def test_a_perfect_model_scores_one_in_every_task(folder: Path) -> None:
    examples = [
        example(folder, "detect dog ; cat", f"{DOG} ; {CAT}"),
        example(folder, "detect cow", ""),
        example(folder, "answer en what?", "dog", answers=("dog", "dog", "wolf")),
        example(folder, "ocr", "STOP"),
        example(folder, "caption <loc0000><loc0000><loc0512><loc0512>", "a dog"),
        example(folder, "caption en", "two cats", "b.png"),
    ]
    model = Parrot({e.prefix: e.suffix for e in examples})
    found = judged(model, examples)
    for name in ("detect: F1", "answer: exact", "ocr: exact", "caption: exact"):
        assert found[name] == 1, name


def test_an_answer_is_not_cut_that_is_right(folder: Path) -> None:
    boxes = [f"<loc0000><loc{i:04}><loc0100><loc{i + 9:04}> dog" for i in range(0, 1000, 10)]
    examples = [example(folder, "detect dog", " ; ".join(boxes))]
    model = Parrot({"detect dog": examples[0].suffix})
    questions = to_questions(examples)
    assert longest_reference(model, questions) > 500
    assert judged(model, examples)["detect: F1"] == 1
    assert model.asked[0].max_new_tokens > 500
    [case] = answer(model, questions, max_new_tokens=60, free=True)
    assert case.is_cut
    assert judged(model, examples, max_new_tokens=60, free=True)["detect: F1"] < 0.3
    short = [example(folder, "ocr", "A")]
    judged(Parrot({"ocr": "A"}), short)
    assert longest_reference(model, to_questions(short)) == 2


@pytest.mark.parametrize(
    ("prefix", "suffix", "labels"),
    [
        ("detect dog ; cat", DOG, ("dog", "cat")),
        ("detect Dog", DOG, ("Dog",)),
        ("detect all objects", f"{DOG} ; {CAT}", ("dog", "cat", "cow")),
        ("detect dog", CAT, ("cat", "cow")),
        ("segment everything", DOG.replace(" dog", "<seg001>" * 16 + " dog"), ("dog", "cow")),
        ("detect things", DOG.removesuffix(" dog"), None),  # without words: whatever it says
        ("detect owl", "", ("owl",)),
    ],
)
def test_labels_are_the_prompts_or_else_the_datas(
    prefix: str, suffix: str, labels: tuple[str, ...] | None
) -> None:
    """Of the data as a whole: those of one picture would give it away."""
    questions = [
        Question("a.png", prefix, (suffix,)),
        Question("b.png", "detect cow", (DOG.replace("dog", "cow"),)),
        Question("b.png", "caption en", (DOG,)),
    ]
    assert allowed_labels(questions)[prefix] == labels


def test_what_the_data_says_can_be_said(folder: Path) -> None:
    examples = [
        example(folder, "detect all objects", f"{DOG} ; {CAT}"),
        example(folder, "detect all objects", CAT, "b.png"),
    ]
    model = Parrot({"detect all objects": f"{DOG} ; {CAT}"})
    assert judged(model, examples)["detect: F1"] == pytest.approx(6 / 7)
    assert all(asked.constraint is not None for asked in model.asked)
    owl = Parrot({"detect all objects": f"{DOG} ; {CAT.replace('cat', 'owl')}"})
    assert judged(owl, examples)["detect: F1"] == 0  # the grammar has no owl
    assert judged(owl, examples, free=True)["detect: F1"] == pytest.approx(2 / 7)
    assert owl.asked[-1].constraint is None


def test_a_part_of_the_data_is_judged_like_the_whole(folder: Path) -> None:
    """As a run's validation, which asks but some: same labels, same limit."""
    questions = [
        Question(folder / "a.png", "detect all objects", (DOG,)),
        Question(folder / "b.png", "detect all objects", (f"{CAT} ; {DOG}",)),
    ]
    model = Parrot({"detect all objects": CAT})
    answer(model, questions[:1], among=questions)
    assert grammar_of(model.asked[0]).labels == ("dog", "cat")


def test_location_tokens_in_a_prompt_are_read_as_in_training(folder: Path) -> None:
    region = example(folder, "caption <loc0000><loc0000><loc0512><loc0512>", "a dog")
    model = Parrot({region.prefix: "a dog"})
    judged(model, [region])
    assert model.asked[0].allow_special_tokens
    rows = Rows([region], model.processor)
    batch, _ = rows.collate([rows[0]])
    location = model.processor.token_id("<loc0512>")
    assert (batch["input_ids"] == location).sum() == 2


def test_training_and_judging_are_given_the_same_tokens(folder: Path) -> None:
    """Of one file, with all that needs tidying."""
    lines = [
        {"image": "a.png", "prefix": "<image>caption en\n", "suffix": "a dog<eos>"},
        {"image": ["a.png", "b.png"], "prefix": " answer en <loc0001>? ", "suffix": "yes"},
    ]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = open_examples(path)
    model = Parrot({example.prefix: example.suffix for example in examples})
    answer(model, to_questions(examples))
    rows = Rows(examples, model.processor)
    for row, asked in zip((rows[0], rows[1]), model.asked, strict=True):
        batch, _ = rows.collate([row])
        prompt = model.processor.words(
            [asked.prompt], [len(asked.pictures)], allow_special_tokens=asked.allow_special_tokens
        )
        learned = batch["input_ids"][0][batch["token_type_ids"][0] == 0]
        assert torch.equal(learned, prompt["input_ids"][0])
        pixels = torch.stack([picture.pixels for picture in asked.pictures])
        assert torch.equal(batch["pixel_values"], pixels)
    assert judged(model, examples)["answer: exact"] == 1


def test_several_pictures_of_a_prompt_make_one_row(folder: Path) -> None:
    examples = [
        example(folder, "answer en same?", "no", "a.png", "b.png"),
        example(folder, "ocr", "A"),
    ]
    processor = tiny_processor()
    rows = Rows(examples, processor)
    batch, broken = rows.collate([rows[0], rows[1]])
    assert batch["pixel_values"].shape[0] == 3
    places = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert places.tolist() == [2 * processor.num_image_tokens, processor.num_image_tokens]
    assert broken == []


def test_a_picture_is_prepared_once_for_all_its_prompts(folder: Path) -> None:
    examples = [example(folder, "ocr", "A"), example(folder, "caption en", "a dog")]
    model = Parrot({"ocr": "A", "caption en": "a dog"})
    judged(model, examples)
    [[first], [second]] = (asked.pictures for asked in model.asked)
    assert isinstance(first, PreparedPicture)
    assert first is second


def test_broken_pictures_are_left_out_and_told(folder: Path) -> None:
    examples = [
        example(folder, "ocr", "A"),
        example(folder, "caption en", "a dog", "a.png", "gone.png"),
        example(folder, "ocr", "B", "gone.png"),
    ]
    model = Parrot({"ocr": "A", "caption en": "a dog"})
    told: list[str] = []
    counts: list[int] = []
    cases = answer(model, to_questions(examples), complain=told.append, progress=counts.append)
    assert [case.question.prefix for case in cases] == ["ocr"]
    assert len(told) == 2
    assert all(message.startswith("line 1: ") and "gone.png" in message for message in told)
    assert counts == [1]
    with pytest.raises(PictureError):
        answer(model, to_questions(examples))


def test_an_answer_whose_numbers_overflow_is_told_and_counts_as_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PaliGemma(tiny_model(worded_config()), tiny_processor())
    made = model.processor.prepare

    def prepare(picture: Any) -> PreparedPicture:
        prepared = made(picture)
        broken = Path(str(picture)).name == "b.png"
        return replace(prepared, pixels=prepared.pixels * (math.inf if broken else 1))

    monkeypatch.setattr(model.processor, "prepare", prepare)
    examples = [example(folder, "ocr", "A", name) for name in ("a.png", "b.png", "a.png")]
    told: list[str] = []
    counts: list[int] = []
    cases = answer(model, to_questions(examples), complain=told.append, progress=counts.append)
    assert counts == [1, 2]
    assert [(case.prediction, bool(case.failure)) for case in cases][1] == ("", True)
    assert not cases[0].failure
    [line] = told
    assert line.startswith("line 1: the model's numbers overflowed")
    assert remarks(cases)[-1] == "1 of 2 answers overflowed and count as wrong"
    assert score([replace(cases[0], prediction="A"), cases[1]], None)["ocr: exact"] == Score(0.5, 2)
    with pytest.raises(PaliglassError, match="line 1: the model's numbers overflowed") as error:
        answer(model, to_questions(examples))
    assert not isinstance(error.value, PictureError)


def test_entries_about_the_same_pictures_are_one_question(folder: Path) -> None:
    examples = [
        example(folder, "caption en", "a dog"),
        example(folder, "ocr", "STOP"),
        example(folder, "caption en", "one dog"),
        example(folder, "answer en what?", "dog", answers=("dog", "hound")),
        example(folder, "caption en", "two dogs", "a.png", "b.png"),
    ]
    questions = to_questions(examples)
    prefixes = ["caption en", "ocr", "answer en what?", "caption en"]
    assert [q.prefix for q in questions] == prefixes
    assert questions[0].references == ("a dog", "one dog")
    assert questions[2].references == ("dog", "hound")
    assert len(questions[3].pictures) == 2


def test_masks_are_refused_before_anything_is_answered() -> None:
    questions = [Question("a.png", "segment dog", ("",))]
    with pytest.raises(PaliglassError, match="mask codec"):
        refuse_unscorable(questions, None)
    refuse_unscorable([Question("a.png", "detect dog", ("",))], None)
