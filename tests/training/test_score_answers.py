"""What a fine-tuning run is judged by on the way."""

from __future__ import annotations

from pathlib import Path

from paliglass.data.examples import Example
from paliglass.training.finetune import score_answers


def test_the_score_is_the_tasks_own() -> None:
    def example(prefix: str, *right: str) -> Example:
        return Example(Path("a.png"), prefix, right[0], "", right)

    asked = [example("answer en what?", *["dog"] * 3), example("ocr", "STOP")]
    assert score_answers(asked, ["The dog.", "SHOP"]) == 0.5
    captions = [
        example("caption en", "a dog runs fast", "a dog"),
        example("cap en", "two cats sit"),
    ]
    box = "<loc0000><loc0000><loc0512><loc0512> dog"
    found = score_answers([*captions, example("detect dog", box)], ["a dog runs", "a cow", box])
    assert 0.5 < found < 0.75
