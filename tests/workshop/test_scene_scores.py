"""Scores on scenes, against figures made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_processor, worded_config
from workshop import scene_scores as scenes
from workshop.scene_scores import About, evaluate, score
from workshop.world import World
from workshop.world.art import Art
from workshop.world.scenes import Scene
from workshop.world.tasks import Example

from paliglass import PaliGemma
from paliglass.evaluation.cases import Case, Question, Score
from paliglass.evaluation.judge import answer
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.confidence import Calibration

LEFT = "<loc0000><loc0000><loc0512><loc0512> dog"
GREY = np.full((64, 64, 3), 128, np.uint8)
EMPTY = Scene(GREY, (), np.zeros((64, 64), np.uint16))


def case(
    kind: str, prediction: str, truth: str, score: float = 0.0, answerable: bool = True
) -> Case:
    about = About(EMPTY, Example("whatever the words", truth, kind, answerable))
    return Case(Question(GREY, about.example.prefix, (truth,), about), prediction, score)


def test_scores_by_hand() -> None:
    cases = [
        case("caption", "a dog", "a dog"),
        case("caption", "a dog", "a dog and a bus"),
        case("describe", "a dog", "a dog in the middle"),
        case("count", "1", "2"),
        case("presence", "yes", "yes"),
        case("presence", "yes", "no"),
        case("presence", "yes", "yes"),
        case("detect", LEFT, LEFT),
        case("detect", LEFT, ""),
        case("ocr", "SHOP", "STOP"),
        case("ocr", "stop", "Stop"),
        case("ocr", "X7", "X7"),
        case("ocr", "two lines", "two lines"),
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
        "describe": (0.0, 1, 1.0),
        "WORD": (0.0, 1, 1.0),
        "word": (0.0, 1, 0.0),
        "string": (1.0, 1, 0.0),
        "lines": (1.0, 1, 0.0),
        "silence": (1.0, 1, 0.0),
        "character errors": (approx(2 / 19), 19, approx((3 + 4 + 9) / 19)),
    }


def test_a_mask_is_scored_by_what_the_answer_is_about_whatever_it_is_called(
    model: PaliGemma, art: Art
) -> None:
    world = World(art=art, size=64, codec=model.mask_codec, mixture={"segment": 1e6})
    scene, examples = world.sample(0, prompts=1)
    example = replace(examples[0], prefix="segment The Whatsit")
    truth = example.suffix.replace(" " + examples[0].prefix.partition(" ")[2], " The Whatsit")
    question = Question(scene.image, example.prefix, (truth,), About(scene, example))
    found = score([Case(question, truth)], model.mask_codec)
    assert found["segment IoU"].n == truth.count(" The Whatsit") > 0
    assert found["segment"].score == pytest.approx(1)


def test_what_is_answered_can_be_told_by_its_score() -> None:
    def of(*cases: Case) -> float:
        return scenes._sureness(SimpleNamespace(calibration=Calibration()), cases)["AUROC"].score  # type: ignore[arg-type]

    sure, unsure = case("what", "dog", "dog", 0.9), case("what", "dog", "dog", 0.4)
    wrong = case("colour", "red", "nothing", 0.5, answerable=False)
    silent = case("colour", "nothing", "nothing", 0.8, answerable=False)
    assert of(sure, unsure, wrong) == 0.5
    assert of(sure, unsure, silent) == 1.0
    assert of(sure, case("what", "nothing", "dog", 0.8), silent) == 0.75


def test_a_composition_is_held_to_the_test_split() -> None:
    others = {"test": {"caption": Score(0.9, 10)}}
    found = scenes._goals("composition", {"caption": Score(0.8, 10), "word": Score(0.5, 5)}, others)
    assert (found["caption"].floor, found["caption"].target) == pytest.approx((0.86, 0.88))
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
    assert naming.floor == 0.55
    assert found["plain"]["naming"].n == 3
    assert found["reading"].keys() <= {"word", "WORD", "string", "character errors"}
    assert found["lines"].keys() <= {"lines", "word", "WORD", "string", "character errors"}
    assert found["unknown"]["AUROC"].baseline == 0.5
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
