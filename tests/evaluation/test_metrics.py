"""Metrics on data of one's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.tiny import noise_picture

from paliglass.errors import PaliglassError
from paliglass.evaluation.cases import Case, Question
from paliglass.evaluation.metrics import average_precision, overall, score
from paliglass.evaluation.page import rightness, to_html, worst
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.boxes import parse_boxes

DOG = "<loc0000><loc0000><loc0512><loc0512> dog"
CAT = "<loc0512><loc0512><loc1023><loc1023> cat"
NEAR = "<loc0000><loc0000><loc0512><loc0460> dog"  # 90 % of the dog's box


def case(
    prefix: str, prediction: str, *answers: str, scores: tuple[float, ...] = (), ignored: str = ""
) -> Case:
    parsed = parse_boxes(prediction)
    objects = tuple(zip(parsed, scores or [0.9] * len(parsed), strict=True))
    question = Question(noise_picture(40, 30), prefix, answers, ignored=ignored)
    return Case(question, prediction, 0.7, objects)


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


@pytest.mark.parametrize("prefix", ["caption en", "answer en what?", "ocr", "detect dog", "what"])
def test_a_failure_is_wrong_where_nothing_is_right_to_say(prefix: str) -> None:
    silent = case(prefix, "", "")
    failed = replace(silent, failure="the numbers overflowed")
    assert (rightness(silent), rightness(failed)) == (1, 0)
    assert overall([failed], None) == 0
    values = {name.split(": ")[1]: value.score for name, value in score([failed], None).items()}
    assert values == {name: float(name in ("CER", "WER")) for name in values}
    if prefix != "caption en":  # of empty captions CIDEr is 0
        assert overall([silent], None) == 1
    if prefix not in ("caption en", "detect dog"):
        assert overall([silent, failed], None) == 0.5


def test_a_failure_to_segment_is_wrong_where_nothing_is_there() -> None:
    torch.manual_seed(0)
    codec = MaskCodec(MaskCodecConfig(width=8)).eval()
    failed = replace(case("segment dog", "", ""), failure="the numbers overflowed")
    found = score([failed], codec)
    assert (found["segment: F1"].score, found["segment: IoU"].score) == (0, 0)
    assert overall([failed], codec) == overall([failed], None) == 0


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


CROWD = "<loc0000><loc0000><loc1023><loc0512> dog"


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        (DOG, "", 1.0),  # within the crowd: neither right nor wrong
        ("", "", 1.0),
        (f"{DOG} ; {CAT}", "", 0.0),  # the cat is nowhere
        (f"{DOG} ; {CAT}", CAT, 1.0),
        (f"{DOG} ; {NEAR}", DOG, 1.0),  # one is the dog, the other one of the crowd
        (DOG.replace("dog", "cat"), "", 0.0),  # a crowd of dogs excuses no cat
        ("<loc0000><loc0000><loc0512><loc1023> dog", "", 1.0),  # half of it
        ("<loc0000><loc0300><loc0512><loc1023> dog", "", 0.0),  # less
    ],
)
def test_crowds_count_by_cocos_rules(prediction: str, truth: str, f1: float) -> None:
    found = score([case("detect dog ; cat", prediction, truth, ignored=CROWD)], None)
    assert found["detect: F1"].score == f1
    if truth and f1 == 1:
        assert found["detect: AP50"].score == pytest.approx(1)
    if not truth:
        assert "detect: AP50" not in found  # there is nothing to find


def test_a_find_in_a_crowd_does_not_cost_precision() -> None:
    both = case("detect", f"{DOG} ; {CAT}", CAT, scores=(0.9, 0.2), ignored=CROWD)
    found = average_precision([both])
    assert found is not None
    assert found[1] == pytest.approx(1)
    alone = average_precision([case("detect", f"{DOG} ; {CAT}", CAT, scores=(0.9, 0.2))])
    assert alone is not None
    assert alone[1] == pytest.approx(1)  # dogs are another class, of which there is none


def test_labels_meet_whatever_their_capitals_and_blanks() -> None:
    found = score(
        [case("detect Hot  Dog", DOG.replace("dog", "hot dog"), DOG.replace("dog", "Hot Dog"))],
        None,
    )
    assert found["detect: F1"].score == 1
    assert found["detect: AP50"].score == pytest.approx(1)


def test_a_run_is_steered_by_one_figure() -> None:
    texts = [case("answer en what?", "The dog.", *["dog"] * 3), case("ocr", "SHOP", "STOP")]
    assert overall(texts, None) == 0.5
    captions = [
        case("caption en", "a dog runs", "a dog runs fast", "a dog"),
        case("cap en", "a cow", "two cats sit"),
    ]
    assert 0.5 < overall([*captions, case("detect dog", DOG, DOG)], None) < 0.75
    masked = DOG.replace(" dog", "<seg001>" * 16 + " dog")
    segment = [case("segment dog", masked, masked)]
    assert overall(segment, None) == 1  # of the boxes
    torch.manual_seed(0)
    assert overall(segment, MaskCodec(MaskCodecConfig(width=8)).eval()) == pytest.approx(1)
    assert overall([], None) == 0


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
