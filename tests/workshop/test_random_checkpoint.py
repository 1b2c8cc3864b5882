from __future__ import annotations

from pathlib import Path

from tests.workshop.conftest import Command
from workshop.random_checkpoint import random_checkpoint

import paliglass


def test_a_random_checkpoint_can_be_asked(command: Command) -> None:
    result = command(random_checkpoint, "paligemma-3b-224", "random", "--divide", "100")
    assert result.code == 0, result.err
    model = paliglass.load("random", dtype="float32")
    tokenizer = model.processor.tokenizer
    text = model.model.config.text_config
    assert tokenizer.token_to_id("<image>") == model.model.config.image_token_index
    assert tokenizer.get_vocab_size() <= text.vocab_size
    assert tokenizer.token_to_id("<loc0000>") == model.model.config.image_token_index - 1152
    scene = Path(__file__).parents[2] / "assets" / "scene.png"
    answer = model.caption(scene, max_new_tokens=2)
    assert answer.finish_reason == "length"
