"""Pictures and texts as the dual encoder takes them."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import noise_picture, tiny_processor, tiny_tokenizer

from paliglass.contrastive.processing import ContrastiveProcessor
from paliglass.errors import CheckpointError, PictureError, PromptError

PAD, EOS = 0, 1


def processor(**settings: object) -> ContrastiveProcessor:
    return ContrastiveProcessor(tiny_tokenizer(), 56, 8, **settings)  # type: ignore[arg-type]


def test_pixels_are_paligemmas() -> None:
    picture = noise_picture()
    assert torch.equal(processor().pixels(picture), tiny_processor().pixels(picture))


def test_texts_end_and_are_padded_to_the_longest() -> None:
    words = processor().words(["dog", "a dog"])
    tokenizer = tiny_tokenizer()
    dog, a_dog = (tokenizer.encode(text).ids for text in ("dog", "a dog"))
    assert len(a_dog) == len(dog) + 2
    assert words["input_ids"].tolist() == [[*dog, EOS, PAD, PAD], [*a_dog, EOS]]
    assert words["attention_mask"].tolist() == [[1] * (len(dog) + 1) + [0, 0], [1] * 4]
    assert words["input_ids"].dtype == torch.int64


def test_a_fixed_length_and_a_text_that_is_too_long() -> None:
    words = processor(padding="max_length").words(["dog", "dog " * 9, ""])
    assert words["input_ids"].shape == (3, 8)
    assert words["input_ids"][1, -1] == EOS
    assert words["attention_mask"].sum(-1).tolist() == [2, 8, 1]


def test_special_tokens_in_a_text_are_text() -> None:
    ids = processor().words(["<eos>"])["input_ids"][0].tolist()
    assert ids[-1] == EOS
    assert ids.count(EOS) == 1
    assert len(ids) == len("<eos>") + 1


def test_canonical_texts_are_lower_case_without_punctuation() -> None:
    words = processor(canonical=True).words([" A  dog!? ", "a dog"])["input_ids"]
    assert words[0].tolist() == words[1].tolist()


def test_the_given_tokenizer_stays_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.to_str()
    ContrastiveProcessor(tokenizer, 32, 8, padding="max_length", canonical=True)
    assert tokenizer.to_str() == before


def test_errors() -> None:
    with pytest.raises(CheckpointError, match="has no </s>"):
        processor(eos_token="</s>")
    with pytest.raises(PromptError, match="UTF-8"):
        processor().words(["\ud800"])
    with pytest.raises(PictureError):
        processor().pixels(b"no picture")
