"""Queries and pages as ColPali reads them."""

from __future__ import annotations

import pytest
from tests.tiny import noise_picture, tiny_processor

from paliglass.errors import PromptError
from paliglass.retrieval.processing import NUM_AUGMENTATION_TOKENS, ColPaliProcessor


def test_what_a_user_writes_is_never_a_special_token() -> None:
    processor = ColPaliProcessor(tiny_processor())
    special = {processor.processor.token_id(t) for t in ("<eos>", "<image>", "<loc0001>")}
    row = processor.queries(["<eos><image><loc0001><pad>"])["input_ids"][0].tolist()
    assert not special & set(row)
    assert row.count(processor.processor.pad_token_id) == NUM_AUGMENTATION_TOKENS


@pytest.mark.parametrize("text", ["dog", "a cap", "  spaced", "é", "Question: "])
@pytest.mark.parametrize("prefix", ["Question: ", "Query:", ""])
def test_a_users_words_are_told_from_what_stands_around_them(text: str, prefix: str) -> None:
    processor = ColPaliProcessor(tiny_processor(), query_prefix=prefix)
    row = processor.queries([text])["input_ids"][0].tolist()
    words = row[processor.words(text)]
    assert processor.processor.decode(words).strip() == text.strip()


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_query_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="the query is empty"):
        ColPaliProcessor(tiny_processor()).queries(["a dog", text])


def test_every_page_has_the_same_tokens() -> None:
    batch = ColPaliProcessor(tiny_processor()).images([noise_picture(seed=s) for s in range(3)])
    assert (batch["input_ids"] == batch["input_ids"][0]).all()
    assert batch["attention_mask"].all()
    assert batch["pixel_values"].shape == (3, 3, 56, 56)
