"""Pictures and prompts to tensors: what transformers has no opinion about, and what users type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import noise_picture, tiny_processor
from tokenizers import Tokenizer, models

from paliglass.errors import CheckpointError, PictureError, PromptError
from paliglass.layers.losses import IGNORE
from paliglass.processing_paligemma import PaliGemmaProcessor

PROCESSOR = tiny_processor()
SPECIAL = ["<image>", "<loc0000>", "<loc1023>", "<seg000>", "<seg127>"]
SPECIAL += ["<bos>", "<eos>", "<pad>", "<unk>"]
FIRST_SPECIAL_ID = PROCESSOR.tokenizer.token_to_id("<loc0000>")


def is_special(token_id: int) -> bool:
    return token_id < 4 or token_id >= FIRST_SPECIAL_ID


def test_the_sequence_is_picture_bos_prompt_newline_answer_eos() -> None:
    batch = PROCESSOR(text="dog", images=noise_picture(), suffix="en")
    dog, en, newline = (PROCESSOR.tokenizer.token_to_id(t) for t in ("dog", "en", "\n"))
    expected = [*[PROCESSOR.image_token_id] * 16, 2, dog, newline, en, 1]
    assert batch["input_ids"].tolist() == [expected]
    assert batch["token_type_ids"].tolist() == [[0] * 19 + [1] * 2]
    assert batch["labels"].tolist() == [[IGNORE] * 19 + [en, 1]]
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("template", ["{}", "find {} here", "a{0}{0}b", "<{}>", "{}dog"])
def test_special_tokens_in_a_prompt_are_plain_text(token: str, template: str) -> None:
    prompt = template.format(token)
    ids = PROCESSOR.encode_prefix(prompt, num_pictures=0)[1:]
    assert not any(map(is_special, ids))
    assert PROCESSOR.tokenizer.decode(ids, skip_special_tokens=False) == prompt + "\n"


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*SPECIAL, "<", ">", "<lo", "c0001>", "a", " ", "é"]), max_size=8))
def test_no_prompt_whatever_makes_a_special_token(parts: list[str]) -> None:
    prompt = "".join(parts)
    ids = PROCESSOR.encode_prefix(prompt, num_pictures=0)[1:]
    assert not any(map(is_special, ids))
    assert PROCESSOR.tokenizer.decode(ids, skip_special_tokens=False) == prompt + "\n"


def test_plain_prompts_are_encoded_as_ever() -> None:
    for prompt in ("", "cap en", "detect dog ; café 犬", "a < b > c"):
        plain = PROCESSOR.encode_prefix(prompt)
        assert plain == PROCESSOR.encode_prefix(prompt, allow_special_tokens=True)


def test_a_flag_lets_special_tokens_through() -> None:
    location = PROCESSOR.tokenizer.token_to_id("<loc0012>")
    batch = PROCESSOR("what is at <loc0012> ?", noise_picture(), allow_special_tokens=True)
    assert location in batch["input_ids"][0]
    batch = PROCESSOR("what is at <loc0012> ?", noise_picture())
    assert location not in batch["input_ids"][0]


def test_an_image_token_in_a_prompt_is_never_let_through() -> None:
    with pytest.raises(PromptError, match="<image>"):
        PROCESSOR("look at <image>", noise_picture(), allow_special_tokens=True)


def test_suffixes_are_training_data_and_may_hold_tokens() -> None:
    ids = PROCESSOR.encode_suffix("<loc0012><seg127>")
    assert ids == [*(PROCESSOR.tokenizer.token_to_id(t) for t in ("<loc0012>", "<seg127>")), 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_marked_on_its_side(side: str) -> None:
    batch = PROCESSOR(["dog", "cap en cap en"], [noise_picture()] * 2, padding_side=side)  # type: ignore[arg-type]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert torch.equal(ids == 0, mask == 0)
    assert mask[1].all()
    length = int(mask[0].sum())
    kept = ids[0, -length:] if side == "left" else ids[0, :length]
    assert kept.tolist() == PROCESSOR.encode_prefix("dog")


def test_the_whole_picture_is_squashed_not_cropped() -> None:
    """A centre crop would lose the edges and shift every box."""
    picture = Image.new("RGB", (400, 100), "white")
    picture.paste("black", (0, 0, 100, 100))
    picture.paste("black", (390, 0, 400, 100))
    row = PROCESSOR.pixels(picture)[0, 28]
    assert row[:13].max() < -0.9  # the left quarter of 56
    assert row[16:52].min() > 0.9
    assert row[-1] < -0.9


def test_pixels_lie_between_minus_one_and_one() -> None:
    for colour, value in (("black", -1.0), ("white", 1.0)):
        pixels = PROCESSOR.pixels(Image.new("RGB", (9, 9), colour))
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, torch.full((3, 56, 56), value))


def test_channels_stay_in_order() -> None:
    pixels = PROCESSOR.pixels(Image.new("RGB", (9, 9), "red"))
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]


def test_every_picture_of_a_batch_is_there_in_order() -> None:
    pictures = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 85, 170, 255)]
    rows = [[pictures[0], pictures[1]], pictures[2], [pictures[3]]]
    batch = PROCESSOR(["a", "b", "c"], rows)
    shades = ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert shades == [0, 85, 170, 255]
    places = (batch["input_ids"] == PROCESSOR.image_token_id).sum(-1)
    assert places.tolist() == [32, 16, 16]


def test_a_prompt_alone_needs_no_picture() -> None:
    batch = PROCESSOR("dog")
    assert "pixel_values" not in batch
    assert batch["input_ids"].tolist() == [PROCESSOR.encode_prefix("dog", num_pictures=0)]


def test_one_prompt_takes_several_pictures() -> None:
    assert PROCESSOR("dog", [noise_picture()] * 3)["pixel_values"].shape == (3, 3, 56, 56)


def test_an_array_is_one_picture_not_a_list_of_rows() -> None:
    assert PROCESSOR("dog", np.zeros((9, 7, 3), np.uint8))["pixel_values"].shape[0] == 1


@pytest.mark.parametrize("count", [1, 3])
def test_numbers_that_do_not_match_are_refused(count: int) -> None:
    with pytest.raises(PromptError, match=f"{count} pictures for 2 prompts"):
        PROCESSOR(["a", "b"], [noise_picture()] * count)
    with pytest.raises(PromptError, match=f"{count} suffixes for 2 prompts"):
        PROCESSOR(["a", "b"], [noise_picture()] * 2, suffix=["c"] * count)


def test_a_prompt_that_is_too_long_is_refused_with_its_length() -> None:
    with pytest.raises(PromptError, match=r"19 tokens .* max_length 18"):
        PROCESSOR("dog", noise_picture(), max_length=18)
    assert PROCESSOR("dog", noise_picture(), max_length=19)["input_ids"].shape == (1, 19)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(PictureError, match=r"broken\.png"):
        PROCESSOR("dog", tmp_path / "broken.png")


@settings(max_examples=100)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    text = text.replace("▁", "_")
    for token in SPECIAL:
        text = text.replace(token, "")
    assert PROCESSOR.decode(PROCESSOR.encode_suffix(text)) == text


def test_decoding_stops_at_the_first_end_and_hides_padding() -> None:
    dog = PROCESSOR.tokenizer.token_to_id("dog")
    assert PROCESSOR.decode([0, 2, dog, 1, dog]) == "dog"
    assert PROCESSOR.decode([]) == ""


def test_location_and_segment_tokens_survive_decoding() -> None:
    text = "<loc0000><loc1023> dog ; <seg000><seg127>"
    assert PROCESSOR.decode(PROCESSOR.encode_suffix(text)) == text


def test_tokens_are_added_once() -> None:
    again = PaliGemmaProcessor(PROCESSOR.tokenizer, 16, 56)
    assert again.image_token_id == PROCESSOR.image_token_id
    assert again.tokenizer.get_vocab_size() == tiny_processor().tokenizer.get_vocab_size()


def test_a_strangers_tokenizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="<pad>"):
        PaliGemmaProcessor(Tokenizer(models.BPE({"a": 0}, [])), 16, 56)


@pytest.mark.parametrize("added", [0, 1, 5])
@pytest.mark.parametrize("rows", [-7, 0, 40])
def test_what_the_tokenizer_has_may_be_said_but_a_pictures_place(added: int, rows: int) -> None:
    """One rule, whatever the table: shorter than the words, as long, or padded."""
    processor = tiny_processor()
    processor.tokenizer.add_tokens([f"<new{i}>" for i in range(added)])
    count, image = processor.tokenizer.get_vocab_size(), processor.image_token_id
    logits = torch.randn(2, 3, count + rows)
    before = logits.clone()
    words = processor.word_logits(logits)
    assert logits.equal(before)  # the caller's own are left as they are
    may = [i for i in range(min(count, count + rows)) if i != image]
    assert words[..., may].equal(logits[..., may])
    others = [i for i in range(words.shape[-1]) if i not in may]
    assert words[..., others].eq(-torch.inf).all()
    assert words.shape[-1] == min(processor.num_words, count + rows)
