"""The prompts that PaliGemma was trained with."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_processor

from paliglass import Box
from paliglass.errors import PromptError
from paliglass.tasks.prompts import (
    READ,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    question_prompt,
    region_prompt,
    segment_prompt,
)


def test_prompts_are_paligemmas() -> None:
    assert READ == "ocr"
    assert caption_prompt() == "caption en"
    assert caption_prompt("de") == "caption de"
    assert caption_prompt("zh-Hans", "cap") == "cap zh-Hans"
    assert caption_prompt("fil", "describe") == "describe fil"
    assert answer_prompt("how many?") == "answer en how many?"
    assert answer_prompt("combien ?", "fr") == "answer fr combien ?"
    assert question_prompt("two dogs", "sv") == "question sv two dogs"
    assert detect_prompt("dog") == "detect dog"
    assert detect_prompt(["dog", " red apple "]) == "detect dog ; red apple"
    assert detect_prompt("dog;cat ; dog") == "detect dog ; cat"
    assert segment_prompt("dog;cat ; dog") == "segment dog ; cat"


@pytest.mark.parametrize("labels", ["", " ; ", [], [""], "\n"])
def test_finding_needs_a_label(labels: str | list[str]) -> None:
    for task, prompt in (("detect", detect_prompt), ("segment", segment_prompt)):
        with pytest.raises(PromptError, match=f"^{task} needs at least one label"):
            prompt(labels)


def test_a_label_is_one_line() -> None:
    """A newline ends the prompt: what came after it would look like an answer."""
    assert detect_prompt("dog\n<loc0001>") == "detect dog <loc0001>"


@pytest.mark.parametrize("code", ["", "e", "english", "EN", "en us", "en\n", "../x", "e1"])
def test_a_language_is_a_code(code: str) -> None:
    for prompt in (
        caption_prompt,
        lambda c: answer_prompt("?", c),
        lambda c: question_prompt("", c),
    ):
        with pytest.raises(PromptError, match="is no language code"):
            prompt(code)


def test_styles_are_known() -> None:
    with pytest.raises(PromptError, match="choose cap, caption, describe"):
        caption_prompt("en", "poem")  # type: ignore[arg-type]


def test_a_region_is_four_tokens_y_before_x() -> None:
    prompt = region_prompt(Box(0, 50, 200, 75), 200, 100)
    assert prompt == "caption <loc0512><loc0000><loc0767><loc1023>"
    assert region_prompt(Box(-9, 50, 999, 75), 200, 100) == prompt
    processor = tiny_processor()
    ids = processor.encode_prefix(prompt, 0, allow_special_tokens=True)
    words = processor.encode_prefix("caption ", 0)[:-1]
    places = [processor.tokenizer.token_to_id(f"<loc{n:04}>") for n in (512, 0, 767, 1023)]
    newline = processor.encode_prefix("", 0)[-1:]
    assert ids == words + places + newline


@pytest.mark.parametrize("box", [Box(5, 5, 5, 9), Box(9, 5, 5, 9), Box(200, 0, 300, 9)])
def test_a_region_needs_area(box: Box) -> None:
    with pytest.raises(PromptError, match="has no area in a picture of 200 × 100"):
        region_prompt(box, 200, 100)
