"""The friendly object: lists in, lists out, in order, whatever the batch."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from tests.tiny import noise_picture, tiny_model, tiny_processor, worded_config

from paliglass import PaliGemma, load
from paliglass.checkpoints import save_folder
from paliglass.checkpoints.assembly import DTYPES, parse_device, parse_dtype
from paliglass.checkpoints.mask_codec import save_mask_codec
from paliglass.cli import options
from paliglass.errors import CheckpointError, PaliglassError, PictureError, PromptError
from paliglass.fast import METHODS
from paliglass.generation import Completion, Request
from paliglass.modeling_mask_codec import MaskCodec, MaskCodecConfig
from paliglass.tasks.answering import GenerationOptions
from paliglass.tasks.confidence import Calibration, Platt
from paliglass.tasks.masks import paste_mask
from paliglass.tasks.prompts import as_prompt
from paliglass.tasks.results import Answer, Detection, Found

PICTURES = [noise_picture(30 + 20 * i, 60, seed=i) for i in range(5)]


@pytest.fixture(scope="module")
def model() -> PaliGemma:
    return PaliGemma(tiny_model(worded_config()), tiny_processor())


def say(patch: pytest.MonkeyPatch, completion: Completion) -> None:
    """Every request is answered so."""
    patch.setattr("paliglass.model.complete", lambda _m, _p, asked, *_: (completion for _ in asked))


def test_an_editor_is_told_the_choices_that_are_there() -> None:
    """The literals in the signature of `load` are what is taken, and what the flags take."""
    hints = get_type_hints(load)

    def literals(name: str) -> set[str]:
        return {v for part in get_args(hints[name]) for v in get_args(part)} | {
            v for v in get_args(hints[name]) if isinstance(v, str)
        }

    assert literals("dtype") == {"auto", *DTYPES} == set(get_args(options.Dtype))
    assert literals("quantize") == set(METHODS) == set(get_args(options.Quantize))
    for name in literals("dtype"):
        parse_dtype(name)
    assert literals("device") == {"auto", "cpu", "cuda", "mps"}
    for name in literals("device"):
        with contextlib.suppress(PaliglassError):  # a device that this machine lacks
            parse_device(name)
    with pytest.raises(PaliglassError, match="choose auto, cpu, cuda, mps"):
        parse_device("gpu")


def test_one_in_one_out_and_lists_in_lists_out(model: PaliGemma) -> None:
    short: dict[str, Any] = {"max_new_tokens": 4}
    for task in (model.caption, model.read):
        assert isinstance(task(PICTURES[0], **short), str)
        assert task([PICTURES[0]], **short) == [task(PICTURES[0], **short)]
    assert len(model.ask(PICTURES[:2], "what?", **short)) == 2
    assert isinstance(model.detect(PICTURES[0], "dog", max_new_tokens=9), list)
    assert len(model.detect(PICTURES[:3], ["dog", "cat"], max_new_tokens=9)) == 3


def test_questions_are_asked_one_by_one_or_one_for_each_picture(model: PaliGemma) -> None:
    short: dict[str, Any] = {"max_new_tokens": 6}
    one, two = (model.ask(PICTURES[0], text, **short) for text in ("what?", "where is it?"))
    assert model.ask(PICTURES[0], ["what?", "where is it?"], **short) == [one, two]
    pairs = model.ask(PICTURES[:2], ["what?", "where is it?"], **short)
    assert pairs == [one, model.ask(PICTURES[1], "where is it?", **short)]
    assert model.ask(PICTURES[:2], ["what?"], choices="yes_no") == model.ask(
        PICTURES[:2], "what?", choices="yes_no"
    )
    assert model.ask(PICTURES[:1], ["what?", "where is it?"], **short) == [one, two]
    assert model.ask([PICTURES[0]] * 2, ("what?", "where is it?"), **short) == [one, two]


@pytest.mark.parametrize(("pictures", "questions"), [(2, 3), (3, 2), (2, 0)])
def test_questions_that_do_not_go_with_the_pictures_are_refused(
    model: PaliGemma, pictures: int, questions: int
) -> None:
    with pytest.raises(PromptError, match=f"{pictures} pictures for {questions} prompts"):
        model.ask(PICTURES[:pictures], ["what?"] * questions)


@pytest.mark.parametrize("question", [None, b"what?", ["where?"], 3])
def test_a_question_that_is_no_text_is_named(model: PaliGemma, question: Any) -> None:
    with pytest.raises(PromptError, match=r"the question is .*; it must be a text"):
        model.ask(PICTURES[0], ["what?", question])


@pytest.mark.parametrize("name", ["conf", "iou", "num_beams", "max_tokens"])
def test_an_unknown_option_is_named_with_those_there_are(model: PaliGemma, name: str) -> None:
    unknown: Any = {name: 1}
    for task in (model.caption, model.read):
        with pytest.raises(TypeError, match=f"no option '{name}'; the options are max_new_tokens"):
            task(PICTURES[0], **unknown)
    with pytest.raises(TypeError, match=f"no option '{name}'"):
        model.detect(PICTURES[0], "dog", **unknown)


def test_several_pictures_serve_every_task(model: PaliGemma) -> None:
    both = [[PICTURES[0], PICTURES[1]]]
    short: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    assert model.ask(both, "same?", choices="yes_no")[0] in ("yes", "no")
    [found] = model.detect(both, "dog", **short)
    assert (found.width, found.height) == PICTURES[0].size
    assert [found] != model.detect([PICTURES[0]], "dog", **short) or not found


def test_an_answer_tells_what_ended_it(model: PaliGemma) -> None:
    assert model.caption(PICTURES[0], max_new_tokens=2).finish_reason == "length"
    assert "finish_reason" in model.caption(PICTURES[0], max_new_tokens=2).to_dict()
    assert model.ask(PICTURES[0], "what?", choices=["dog"]).finish_reason == "stop"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(model: PaliGemma, batch_size: int) -> None:
    alone = [model.caption(picture, max_new_tokens=6) for picture in PICTURES]
    assert len(set(alone)) > 1  # the pictures matter
    assert model.caption(PICTURES, max_new_tokens=6, batch_size=batch_size) == alone


def test_one_picture_takes_many_prompts(model: PaliGemma) -> None:
    prompts = ["cap en", "detect dog", "dog"]
    answers = model.generate(PICTURES[0], prompts, max_new_tokens=6)
    assert answers == [model.generate(PICTURES[0], p, max_new_tokens=6) for p in prompts]


def test_a_picture_asked_about_twice_is_looked_at_once(model: PaliGemma) -> None:
    seen: list[int] = []
    tower = model.model.vision_tower
    handle = tower.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    model.generate(PICTURES[0], ["a", "b", "c"], max_new_tokens=3)
    model.generate([PICTURES[0], PICTURES[1], PICTURES[0]], ["a", "b", "c"], max_new_tokens=3)
    handle.remove()
    assert seen == [1, 2]


def test_every_kind_of_picture_means_the_same(model: PaliGemma, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    answers = {
        model.caption(source, max_new_tokens=6)
        for source in (PICTURES[0], path, str(path), path.read_bytes(), np.asarray(PICTURES[0]))
    }
    assert len(answers) == 1


def test_several_pictures_serve_one_prompt(model: PaliGemma) -> None:
    both = model.generate([[PICTURES[0], PICTURES[1]]], ["what differs?"], max_new_tokens=8)
    swapped = model.generate([[PICTURES[1], PICTURES[0]]], ["what differs?"], max_new_tokens=8)
    assert len(both) == 1
    assert both != swapped


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_answer(model: PaliGemma, seed: int) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_new_tokens": 40}
    pieces = list(model.generate(PICTURES[0], "cap en", stream=True, **options))
    assert "".join(pieces) == model.generate(PICTURES[0], "cap en", **options)
    assert len(pieces) > 1


def test_sampling_does_not_depend_on_the_batch(model: PaliGemma) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 0, "max_new_tokens": 8}
    together = model.caption(PICTURES, **options)
    assert together == model.caption(PICTURES, batch_size=2, **options)
    assert together[0] == model.caption(PICTURES[0], **options)


def test_a_stream_of_many_is_refused(model: PaliGemma) -> None:
    with pytest.raises(PromptError, match="stream"):
        model.generate(PICTURES, "cap en", stream=True)


def test_numbers_that_do_not_match_are_refused(model: PaliGemma) -> None:
    with pytest.raises(PromptError, match="2 pictures for 3 prompts"):
        model.generate(PICTURES[:2], ["a", "b", "c"])


def test_nothing_in_nothing_out(model: PaliGemma) -> None:
    assert model.caption([]) == []
    assert model.detect([], "dog") == []


def test_a_broken_picture_is_named(model: PaliGemma, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(PictureError, match=r"broken\.png: is empty"):
        model.caption([PICTURES[0], tmp_path / "broken.png"])


def test_boxes_come_in_pixels_of_the_upright_picture_with_scores(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "<loc0000><loc0341><loc0682><loc1023> dog ; <loc0682><loc0000><loc1023><loc0341> cat"
    ids = model.processor.encode_suffix(answer)[:-1]
    cat = len(model.processor.encode_suffix(answer.split(" ; ")[0])) - 1
    log_probs = [0.0 if i < cat else float(np.log(0.25)) for i in range(len(ids))]
    say(monkeypatch, Completion(ids, log_probs, "stop"))
    picture = noise_picture(300, 150)
    dog, cat_found = model.detect(picture, "dog ; cat", free=True)
    assert isinstance(dog, Detection)
    assert dog.label == "dog"
    assert dog.box == pytest.approx((100, 0, 300, 100))
    assert dog.score == pytest.approx(1)
    assert cat_found.box == pytest.approx((0, 100, 100, 150))
    word = len(model.processor.encode_plain(" cat"))
    assert cat_found.score == pytest.approx(0.25 ** (1 + word))


def test_special_tokens_of_a_user_stay_text(model: PaliGemma) -> None:
    tokens: list[int] = []
    embed = model.model.language_model.model.embed_tokens
    handle = embed.register_forward_hook(lambda _m, inputs, _o: tokens.extend(inputs[0].flatten()))
    location = model.processor.tokenizer.token_to_id("<loc0012>")
    model.generate(PICTURES[0], "at <loc0012> ?", max_new_tokens=1)
    plain = [int(token) for token in tokens]
    tokens.clear()
    model.generate(PICTURES[0], "at <loc0012> ?", max_new_tokens=1, allow_special_tokens=True)
    handle.remove()
    assert location not in plain
    assert location in [int(token) for token in tokens]


@pytest.mark.parametrize("before", ["<image>", "<image><image><bos>", " <image>\n"])
@pytest.mark.parametrize("special", [False, True])
def test_what_stands_before_a_prompt_anyway_is_not_read_as_letters(
    model: PaliGemma, before: str, special: bool
) -> None:
    how: dict[str, Any] = {"max_new_tokens": 8, "allow_special_tokens": special}
    plain = model.generate(PICTURES[0], "caption en", **how)
    written = model.generate(PICTURES[0], f"{before}caption en", **how)
    assert (written, written.score) == (plain, plain.score)
    assert "".join(model.generate(PICTURES[0], f"{before}caption en", stream=True, **how)) == plain


@pytest.mark.parametrize("prompt", ["caption en\n", "  caption en ", "\tcaption en\r\n"])
def test_blanks_at_the_ends_of_a_prompt_change_nothing(model: PaliGemma, prompt: str) -> None:
    """Those of data are left out too; the processor puts the one newline there."""
    plain = model.generate(PICTURES[0], "caption en", max_new_tokens=8)
    assert model.generate(PICTURES[0], prompt, max_new_tokens=8).score == plain.score
    assert model.ask_task(f" {prompt}").prompt == "answer en caption en"


@pytest.mark.parametrize("prompt", ["caption <image> en", "caption en<image>", "what is <image>?"])
def test_a_prompt_that_holds_a_pictures_place_is_refused(model: PaliGemma, prompt: str) -> None:
    for special in (False, True):
        with pytest.raises(PromptError, match="holds <image>"):
            model.generate(PICTURES[0], prompt, allow_special_tokens=special)
    with pytest.raises(PromptError, match="holds <image>"):
        model.ask(PICTURES[0], prompt)


@pytest.mark.parametrize("label", ["<loc0001> dog", "dog <seg001>", "dog<eos>", "<image>"])
def test_labels_that_no_answer_can_say_are_refused(model: PaliGemma, label: str) -> None:
    for free in (False, True):
        with pytest.raises(PromptError, match="holds <"):
            model.detect(PICTURES[0], ["cat", label], free=free)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((float("nan"), ValueError), (2, ValueError), (-0.1, ValueError)),
        *(("0.5", TypeError), (None, TypeError), (True, TypeError)),
    ],
)
def test_a_least_score_that_is_none_is_refused(
    model: PaliGemma, value: Any, kind: type[Exception]
) -> None:
    """Else everything would be below it, and nothing found."""
    with pytest.raises(kind, match="min_score is "):
        model.detect(PICTURES[0], "dog", min_score=value)


@pytest.mark.parametrize("choices", ["yes", "yes,no", "yes ; no", "numbers", "YES_NO", ""])
def test_one_text_is_no_list_of_choices(model: PaliGemma, choices: Any) -> None:
    """It would be the only choice, and so the answer, with the score 1."""
    with pytest.raises(PromptError, match="give a list, or yes_no or number"):
        model.ask(PICTURES[0], "what?", choices=choices)


@pytest.mark.parametrize("kind", [tuple, iter, np.array])
def test_choices_come_in_any_collection(model: PaliGemma, kind: Any) -> None:
    words = ["dog", "cat"]
    expected = model.ask(PICTURES[0], "what?", choices=words)
    assert model.ask(PICTURES[0], "what?", choices=kind(words)) == expected


def test_a_prompt_without_pictures_is_refused(model: PaliGemma) -> None:
    for pictures in ([[]], [PICTURES[0], []], [()]):
        with pytest.raises(PictureError, match="of one prompt is empty"):
            model.caption(pictures)  # type: ignore[arg-type]


def test_a_task_that_there_is_none_of_is_named(model: PaliGemma) -> None:
    for task in ("capton", "", 3):
        with pytest.raises(PromptError, match="it must be one of answer, caption"):
            model.generate(PICTURES[0], "caption en", task=task)  # type: ignore[call-overload]


@pytest.mark.parametrize("before", ["<image>", " <bos><image>\n"])
def test_what_stands_before_a_question_anyway_is_not_read_either(
    model: PaliGemma, before: str
) -> None:
    assert model.ask_task(f"{before}what?").prompt == "answer en what?"
    assert model.ask_task(f"{before}what?", choices="yes_no").prompt == "answer en what?"
    assert model.text_task(before).prompt == ""
    assert as_prompt(f"{before}detect dog") == "detect dog"
    assert as_prompt(f"{before}what?") == "answer en what?"
    with pytest.raises(PromptError, match="the question is empty"):
        model.ask_task(before)


@pytest.mark.parametrize("value", [b"cat", bytearray(b"cat"), {"cat": 1}, 3, ["dog", b"cat"]])
def test_what_is_no_text_is_named_whole(model: PaliGemma, value: Any) -> None:
    wrong = re.escape(repr(value[1] if isinstance(value, list) else value))
    with pytest.raises(PromptError, match=f"a label is {wrong}; it must be a text"):
        model.detect_task(value)


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "batch_size", "seed", "top_k", "top_p", "temperature"]
)
def test_a_truth_value_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is True; it must be a"):
        GenerationOptions(**{name: True})


def test_a_saved_model_answers_the_same(model: PaliGemma, tmp_path: Path) -> None:
    save_folder(model.model, tmp_path / "model", model.processor)
    again = load(tmp_path / "model", device="cpu")
    assert again.caption(PICTURES, max_new_tokens=8) == model.caption(PICTURES, max_new_tokens=8)


def same_but_rounding(found: list[Any], expected: list[Any]) -> None:
    """Equal, and scores equal up to the order in which a batch's numbers are added."""
    scores = [[thing.score for thing in some] for some in found]
    for ours, theirs in zip(scores, expected, strict=True):
        assert ours == pytest.approx([thing.score for thing in theirs], rel=1e-3)
    assert [[dataclasses.replace(thing, score=0.5) for thing in some] for some in found] == [
        [dataclasses.replace(thing, score=0.5) for thing in some] for some in expected
    ]


def test_within_the_grammar_boxes_come_in_pixels_with_the_labels_as_given(
    model: PaliGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = (
        "<loc0000><loc0341><loc0682><loc1023> Hund ; <loc0682><loc0000><loc1023><loc0341> Katze"
    )
    ids = model.processor.encode_suffix(answer)[:-1]
    say(monkeypatch, Completion(ids, [-0.5] * len(ids), "stop"))
    found = model.detect(noise_picture(300, 150), ["Katze", "Hund"])
    assert isinstance(found, Found)
    assert (found.width, found.height) == (300, 150)
    assert [f.label for f in found] == ["Hund", "Katze"]
    assert found[0].box == pytest.approx((100, 0, 300, 100))
    assert found[1].box == pytest.approx((0, 100, 100, 150))
    words = len(model.processor.encode_plain(" Hund"))
    assert found[0].score == pytest.approx(np.exp(-0.5 * (1 + words)))
    assert found[0].score > found[1].score
    between = (found[0].score + found[1].score) / 2
    assert model.detect(noise_picture(300, 150), ["Katze", "Hund"], min_score=between) == found[:1]


def test_detect_says_nothing_but_the_labels(model: PaliGemma) -> None:
    found = model.detect(PICTURES, "dog ; cap", max_new_tokens=60)
    assert all(isinstance(f, Found) for f in found)
    assert any(found)
    assert {d.label for f in found for d in f} <= {"dog", "cap"}
    for picture, detections in zip(PICTURES, found, strict=True):
        for d in detections:
            assert 0 <= d.box.x0 < d.box.x1 <= picture.width
            assert 0 <= d.box.y0 < d.box.y1 <= picture.height
            assert 0 < d.score <= 1
    labels: dict[str, Any] = {"labels": ["dog", "cap"], "max_new_tokens": 60}
    same_but_rounding(model.detect(PICTURES, **labels, batch_size=2), found)
    same_but_rounding([model.detect(picture, **labels) for picture in PICTURES], found)


def test_a_label_is_needed(model: PaliGemma, codec: MaskCodec) -> None:
    segmenting = PaliGemma(model.model, model.processor, codec)
    for task, name in ((model.detect, "detect"), (segmenting.segment, "segment")):
        with pytest.raises(PromptError, match=f"{name} needs at least one label"):
            task(PICTURES[0], " ; ")


@pytest.fixture(scope="module")
def codec() -> MaskCodec:
    torch.manual_seed(0)
    return MaskCodec(MaskCodecConfig(width=8, embedding_dim=8)).eval()


@pytest.mark.parametrize("free", [False, True])
def test_segments_have_masks_of_the_whole_picture(
    model: PaliGemma, codec: MaskCodec, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    """Each label is a prompt of its own; its codes are decoded and pasted into its box."""
    codes = tuple(range(0, 128, 8))
    tokens = "".join(f"<seg{code:03}>" for code in codes)
    box = "<loc0000><loc0341><loc0682><loc1023>"
    answers = [f"{box}{tokens} dog", "", "", f"{box}{tokens} cat"]
    if free:
        answers[1] = f"{box}{tokens[8:]} cat"  # a code is missing
    prompts: list[str] = []

    def answer(_model: object, _processor: object, requests: Iterable[Request], *_: Any) -> Any:
        for text, request in zip(answers, requests, strict=True):
            prompts.append(request.prompt)
            ids = model.processor.encode_suffix(text)[:-1]
            yield Completion(ids, [0.0] * len(ids), "stop")

    segmenting = PaliGemma(model.model, model.processor, codec)
    monkeypatch.setattr("paliglass.model.complete", answer)
    pictures = [noise_picture(300, 150), noise_picture(60, 90)]
    first, second = segmenting.segment(pictures, ["dog", "cat"], free=free)
    assert prompts == ["segment dog", "segment cat"] * 2
    assert [segment.label for segment in first] == ["dog"]
    assert [segment.label for segment in second] == ["cat"]
    assert first[0].box == pytest.approx((100, 0, 300, 100))
    mask64 = codec.decode(torch.tensor([codes]))[0].numpy()
    expected = paste_mask(mask64, first[0].box, 150, 300)
    assert first[0].mask.shape == (150, 300)
    assert np.array_equal(first[0].mask, expected)
    assert second[0].mask.shape == (90, 60)
    assert (second.width, second.height) == (60, 90)


def test_segmenting_in_batches_is_segmenting_alone(model: PaliGemma, codec: MaskCodec) -> None:
    segmenting = PaliGemma(model.model, model.processor, codec)
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.0, "seed": 2}
    together = segmenting.segment(PICTURES, ["dog", "cap"], **options)
    assert any(together)
    assert {s.label for found in together for s in found} <= {"dog", "cap"}
    small = segmenting.segment(PICTURES, ["dog", "cap"], batch_size=3, **options)
    same_but_rounding(small, together)
    alone = [segmenting.segment(picture, "dog ; cap", **options) for picture in PICTURES[:1]]
    same_but_rounding(alone, together[:1])


def test_without_a_codec_segmenting_says_how_to_get_one(model: PaliGemma) -> None:
    with pytest.raises(CheckpointError, match=r"no mask codec.*vae-oid\.npz.*mask_codec=PATH"):
        model.segment(PICTURES[0], "dog")


def test_a_closed_question_gets_one_of_its_answers(model: PaliGemma) -> None:
    for choices in (["dog", "dog house", "C++"], "yes_no", ["only"]):
        given: Any = choices
        answers = model.ask(PICTURES, "what?", choices=given)
        assert set(answers) <= set(["yes", "no"] if choices == "yes_no" else choices)
        assert answers == [model.ask(p, "what?", choices=given) for p in PICTURES]
    assert model.ask(PICTURES[0], "what?", choices=["only"]).score == 1
    number = model.ask(PICTURES[0], "how many?", choices="number", max_new_tokens=3)
    assert number.isdecimal()


def test_the_scores_of_a_closed_question_are_probabilities(model: PaliGemma) -> None:
    """Of sampled answers each comes as often as its score says."""
    choices = ["dog", "do", "en"]
    options: dict[str, Any] = {"choices": choices, "temperature": 1.0, "seed": 0}
    answers = model.ask([PICTURES[0]] * 400, "what?", batch_size=200, **options)
    scores = {str(answer): answer.score for answer in answers}
    for text, score in scores.items():
        assert answers.count(text) / 400 == pytest.approx(score, abs=0.08)
    if len(scores) == 3:
        assert sum(scores.values()) == pytest.approx(1, abs=1e-4)


def test_texts_are_strings_with_scores(model: PaliGemma) -> None:
    for answer in (
        model.caption(PICTURES[0], max_new_tokens=4),
        model.read(PICTURES[0], max_new_tokens=4),
        model.ask(PICTURES[0], "what?", max_new_tokens=4),
        model.generate(PICTURES[0], "what?", max_new_tokens=4),
    ):
        assert isinstance(answer, Answer)
        assert answer == str(answer)
        assert 0 < answer.score <= 1


def test_the_end_counts_in_a_texts_score(model: PaliGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = model.processor.encode_plain("dog")
    say(monkeypatch, Completion(ids, [0.0] * len(ids), "stop", float(np.log(0.25))))
    expected = 0.25 ** (1 / (len(ids) + 1))
    assert model.read(PICTURES[0]).score == pytest.approx(expected)


def test_each_task_has_its_calibration(model: PaliGemma, codec: MaskCodec) -> None:
    scales = [Platt(0, float(i)) for i in range(5)]
    calibrated = PaliGemma(model.model, model.processor, codec, Calibration(*scales))
    levels = [scale(0.5) for scale in scales]
    short: dict[str, Any] = {"max_new_tokens": 30}
    assert calibrated.ask(PICTURES[0], "what?", **short).score == levels[0]
    assert calibrated.caption(PICTURES[0], **short).score == levels[1]
    assert calibrated.read(PICTURES[0], **short).score == levels[4]
    detections = [d for found in calibrated.detect(PICTURES, "dog", **short) for d in found]
    segments = [s for found in calibrated.segment(PICTURES, "dog", **short) for s in found]
    assert {d.score for d in detections} == {levels[2]}
    assert {s.score for s in segments} == {levels[3]}
    assert not any(calibrated.detect(PICTURES, "dog", min_score=levels[2] + 0.01, **short))


def test_codec_and_calibration_are_read_beside_the_weights(
    model: PaliGemma, codec: MaskCodec, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_folder(model.model, folder, model.processor)
    assert load(folder, device="cpu").mask_codec is None
    save_mask_codec(codec, tmp_path / "other.safetensors")
    given = load(folder, device="cpu", mask_codec=tmp_path / "other.safetensors")
    assert given.mask_codec is not None
    save_mask_codec(codec, folder / "mask_codec.safetensors")
    Calibration(detect=Platt(2, 1)).save(folder / "calibration.json")
    beside = load(folder, device="cpu")
    assert beside.calibration == Calibration(detect=Platt(2, 1))
    expected = PaliGemma(model.model, model.processor, codec).segment(PICTURES[0], "dog")
    assert expected
    for loaded in (given, beside):
        masks = [s.mask for s in loaded.segment(PICTURES[0], "dog")]
        assert all(np.array_equal(a, b.mask) for a, b in zip(masks, expected, strict=True))
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        load(folder, device="cpu", mask_codec=tmp_path / "missing.safetensors")


@pytest.mark.parametrize("text", [None, 3, ["a", None], [b"a"]], ids=repr)
def test_what_is_no_text_is_refused_by_name(model: PaliGemma, text: Any) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("the question", lambda: model.ask(PICTURES[0], text)),
        ("a label", lambda: model.detect(PICTURES[0], text)),
        ("the prompt", lambda: model.generate(PICTURES[0], text)),
    ]
    if text is not None:
        calls.append(("a choice", lambda: model.ask(PICTURES[0], "a", choices=text)))
    for what, call in calls:
        with pytest.raises(PromptError, match=rf"{what} is .*; it must be a text"):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_new_tokens", "5"), ("seed", 1.5), ("top_k", "x"), ("temperature", "hot")),
        *(("top_p", []), ("max_new_tokens", None), ("batch_size", None), ("temperature", None)),
    ],
)
def test_an_option_that_is_no_number_is_named(model: PaliGemma, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is .*; it must be a "):
        model.caption(PICTURES[0], **{name: value})
