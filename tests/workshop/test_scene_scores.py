"""Scores on scenes, against figures made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_processor, worded_config
from workshop import scene_scores as scenes
from workshop.scene_scores import evaluate, score
from workshop.world import World
from workshop.world.art import Art

from paliglass import PaliGemma
from paliglass.evaluation.cases import Case, Question, Score
from paliglass.evaluation.judge import answer
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig

LEFT = "<loc0000><loc0000><loc0512><loc0512> dog"
GREY = np.full((64, 64, 3), 128, np.uint8)


def case(prefix: str, prediction: str, truth: str) -> Case:
    return Case(Question(GREY, prefix, (truth,)), prediction)


def test_scores_by_hand() -> None:
    cases = [
        case("caption en", "a dog", "a dog"),
        case("caption en", "a dog", "a dog and a bus"),
        case("answer en how many dogs are there?", "1", "2"),
        case("answer en is there a bus?", "yes", "yes"),
        case("answer en is there a cat?", "yes", "no"),
        case("answer en is there a dog?", "yes", "yes"),
        case("detect dog", LEFT, LEFT),
        case("detect bus", LEFT, ""),
        case("ocr", "SHOP", "STOP"),
        case("ocr", "X7", "X7"),
        case("ocr", "", ""),
    ]
    found = {
        name: (value.score, value.n, value.baseline) for name, value in score(cases, None).items()
    }
    approx = pytest.approx
    assert found == {
        "caption": (approx(2 * 2 / 5), 3, approx(2 * 2 / 5)),  # "a dog" is also the commonest
        "answer": (approx(2 / 4), 4, approx(3 / 4)),
        "answer: count": (0.0, 1, 1.0),
        "answer: presence": (approx(2 / 3), 3, approx(2 / 3)),
        "detect": (approx(2 / 3), 1, approx(2 / 3)),
        "word": (0.0, 1, 1.0),
        "string": (1.0, 1, 0.0),
        "silence": (1.0, 1, 0.0),
        "character errors": (approx(1 / 6), 6, approx(4 / 6)),
    }


def test_a_composition_is_held_to_the_test_split() -> None:
    others = {"test": {"caption": Score(0.9, 10)}}
    found = scenes._goals("composition", {"caption": Score(0.8, 10), "word": Score(0.5, 5)}, others)
    assert (found["caption"].floor, found["caption"].target) == pytest.approx((0.85, 0.88))
    assert found["word"].floor is None
    assert scenes._goals("composition", {"caption": Score(0.8, 10)}, {})["caption"].floor is None


def test_a_score_is_told_in_json_with_what_is_asked_of_it() -> None:
    told = Score(0.123456, 7, 0.5, floor=0.85).to_dict()
    assert told == {"score": 0.1235, "baseline": 0.5, "floor": 0.85, "target": None, "n": 7}


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(width=8)).eval()
    return PaliGemma(tiny_model(worded_config()), tiny_processor(), codec)


def test_every_split_is_scored(
    model: PaliGemma, art: Art, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenes, "read_by_rapidocr", lambda cases: None)
    told: list[tuple[str, int, int]] = []
    found, answered = evaluate(
        model,
        lambda split: World(art=art, split=split, size=64, codec=model.mask_codec),
        limit=3,
        prompts=8,
        progress=lambda *step: told.append(step),
    )
    assert list(found) == list(scenes.SCORED_SPLITS)
    assert found["style"]["naming"].n == 3
    naming = found["style"]["naming"]
    assert naming.baseline is not None
    assert naming.floor == pytest.approx(naming.baseline + 0.15)
    assert found["reading"].keys() <= {"word", "string", "character errors"}
    assert found["digits"]["answer: digit"].n == 3
    assert found["blank"].keys() == found["shuffled"].keys()
    assert {split for split, *_ in told} == set(scenes.SCORED_SPLITS)
    assert len(answered["test"]) == 3 * 8 + 3
    blank = answered["blank"][0]
    assert (np.asarray(blank.question.picture) == 128).all()
    assert blank.question.prefix == answered["test"][0].question.prefix
    assert found["test"]["segment"].n == found["test"]["segment IoU"].n


def test_answers_come_in_the_order_of_the_questions(model: PaliGemma) -> None:
    prefixes = ["detect dog", "caption en", "segment cap", "ocr"]
    questions = [Question(GREY, prefix, ("",)) for prefix in prefixes]
    counts: list[int] = []
    cases = answer(model, questions, max_new_tokens=24, progress=counts.append)
    assert [case.question.prefix for case in cases] == prefixes
    assert counts == [1, 2, 3, 4]
    for found in (cases[0], cases[2]):  # held to the grammar: whole boxes, or nothing
        assert found.prediction == "" or found.objects
        assert len(found.objects) == len([part for part in found.prediction.split(" ; ") if part])
