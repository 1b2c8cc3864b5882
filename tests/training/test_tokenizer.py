from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.workshop.fake_world import FakeWorld
from tokenizers import Tokenizer
from workshop.tokenizer import training_texts

from paliglass.processing_paligemma import PaliGemmaProcessor
from paliglass.training.tokenizer import BASE_VOCABULARY, train_tokenizer

TOKENIZER = train_tokenizer([*training_texts(FakeWorld(), scenes=50, prompts=4), "STOP 42\n"] * 3)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("<pad>", 0),
        ("<eos>", 1),
        ("<bos>", 2),
        ("<unk>", 3),
        ("<0x00>", 4),
        ("<0xFF>", 259),
        ("\n", 260),
        ("<loc0000>", BASE_VOCABULARY),
        ("<loc1023>", BASE_VOCABULARY + 1023),
        ("<seg000>", BASE_VOCABULARY + 1024),
        ("<seg127>", BASE_VOCABULARY + 1151),
        ("<image>", BASE_VOCABULARY + 1152),
    ],
)
def test_ids_stand_where_the_layout_says(token: str, expected: int) -> None:
    assert TOKENIZER.token_to_id(token) == expected
    assert TOKENIZER.get_vocab_size() == BASE_VOCABULARY + 1153


def test_words_of_the_texts_are_single_tokens_and_keep_their_space() -> None:
    assert TOKENIZER.encode("what colour is the square").tokens == [
        "what",
        "▁colour",
        "▁is",
        "▁the",
        "▁square",
    ]


def test_capitals_and_digits_are_never_merged() -> None:
    assert TOKENIZER.encode("STOP 42").tokens == ["S", "T", "O", "P", "▁", "4", "2"]


def test_a_prompt_is_the_same_ids_with_the_model_s_processor() -> None:
    processor = PaliGemmaProcessor(TOKENIZER, num_image_tokens=4, image_size=32)
    ids = processor.encode_prefix("caption en", num_pictures=0)
    assert ids == [2, *TOKENIZER.encode("caption en").ids, 260]


@given(st.text(st.characters(exclude_characters="▁", exclude_categories=("Cs",))))
def test_every_text_comes_back(text: str) -> None:
    tokenizer: Tokenizer = TOKENIZER
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
