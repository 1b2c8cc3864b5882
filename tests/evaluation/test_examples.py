"""Metrics on data of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import noise_picture

from paliglass.data.examples import Example
from paliglass.errors import PaliglassError
from paliglass.evaluation.cases import Case, Question
from paliglass.evaluation.examples import average_precision, score, to_questions
from paliglass.evaluation.page import rightness, to_html, worst
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.boxes import parse_boxes

DOG = "<loc0000><loc0000><loc0512><loc0512> dog"
CAT = "<loc0512><loc0512><loc1023><loc1023> cat"
NEAR = "<loc0000><loc0000><loc0512><loc0460> dog"  # 90 % of the dog's box


def case(prefix: str, said: str, *answers: str, scores: tuple[float, ...] = ()) -> Case:
    parsed = parse_boxes(said)
    objects = tuple(zip(parsed, scores or [0.9] * len(parsed), strict=True))
    return Case(Question(noise_picture(40, 30), prefix, answers), said, 0.7, objects)


def test_entries_about_one_picture_are_one_question() -> None:
    path = Path("a.png")
    examples = [
        Example(path, "caption en", "a dog", "line 1"),
        Example(path, "ocr", "STOP", "line 2"),
        Example(path, "caption en", "one dog", "line 3"),
        Example(path, "answer en what?", "dog", "line 4", answers=("dog", "hound")),
    ]
    questions = to_questions(examples)
    assert [q.prefix for q in questions] == ["caption en", "ocr", "answer en what?"]
    assert questions[0].answers == ("a dog", "one dog")
    assert questions[2].answers == ("dog", "hound")


def test_each_task_has_its_metrics() -> None:
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(width=8)).eval()
    masked = DOG.replace(" dog", "<seg001>" * 16 + " dog")
    found = score(
        [
            case("caption en", "a dog runs", "a dog runs", "a brown dog"),
            case("caption en", "a cat", "a cat sits there"),
            case("answer en what?", "The dog.", *["dog"] * 10),
            case("ocr", "SHOP", "STOP"),
            case("detect dog ; cat", f"{DOG} ; {CAT}", f"{NEAR} ; {CAT}"),
            case("segment dog", masked, masked),
            case("what is this", "yes", "yes"),
        ],
        codec,
    )
    values = {name: value.score for name, value in found.items()}
    assert values["caption: exact"] == 0.5
    assert values["caption: CIDEr"] > 1
    assert values["answer: VQA accuracy"] == 1
    assert values["answer: exact"] == 0
    assert (values["ocr: CER"], values["ocr: WER"]) == (0.25, 1)
    assert values["detect: F1"] == 1
    assert values["detect: AP50"] == pytest.approx(1)
    assert values["segment: IoU"] == pytest.approx(1)
    assert values["what: exact"] == 1


def test_average_precision_is_cocos() -> None:
    # IoU .9 is right at .5, .55 … .9 for the dog; the cat's score is lower and its box exact.
    truth = case("detect", f"{NEAR} ; {CAT}", f"{DOG} ; {CAT}")
    found = average_precision([truth])
    assert found is not None
    width = 460 / 512
    dog = sum(width >= threshold / 100 for threshold in range(50, 100, 5)) / 10
    assert found == pytest.approx(((dog + 1) / 2, 1.0))
    # A surer claim where nothing is halves the precision of the dog behind it.
    both = case("detect", f"{CAT.replace('cat', 'dog')} ; {DOG}", DOG, scores=(0.9, 0.2))
    found = average_precision([both])
    assert found is not None
    assert found[1] == pytest.approx(0.5)
    assert average_precision([case("detect", DOG, "")]) is None
    assert average_precision([case("detect", "", DOG)]) == (0.0, 0.0)


def test_masks_need_a_codec() -> None:
    with pytest.raises(PaliglassError, match="mask codec"):
        score([case("segment dog", "", "")], None)


def test_the_page_shows_the_surest_wrong_answers_and_is_safe() -> None:
    cases = [
        case("answer en <b>?", "<script>no", "yes & no"),
        case("answer en right?", "yes", "yes"),
        case("detect dog", DOG, NEAR),
        case("detect cat", CAT, DOG),
    ]
    assert [rightness(c) for c in cases] == [0, 1, 1, 0]
    assert {task: len(some) for task, some in worst(cases, 3).items()} == {"answer": 1, "detect": 1}
    page = to_html("How <right>?", {"mine": score(cases, None)}, {"mine": cases})
    assert "<script>" not in page
    assert "&lt;script&gt;no" in page
    assert "How &lt;right&gt;?" in page
    assert page.count("<figure>") == 2
    assert page.count("data:image/webp") == 3  # the detection is drawn as it is and as it was said
    assert "right?" not in page.split("<section>")[1].replace("How", "")
