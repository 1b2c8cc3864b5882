"""The lab's engine computes what the Python package computes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from paliglass import PaliGemma, load
from paliglass.modeling_mask_codec import MaskCodec
from paliglass.tasks.grammar import ObjectGrammar
from paliglass.tasks.prompts import detect_prompt, segment_prompt
from tests.lab.helpers import ENGINE, MINI, floats, needs_node, run_engine, shapes, store

pytestmark = needs_node

PROMPTS = [
    "caption en",
    "answer en what color is the circle?",
    detect_prompt("circle ; square"),
    segment_prompt("triangle"),
    "ocr",
]
LIMIT = 40


@pytest.fixture(scope="module")
def mini() -> PaliGemma:
    return load("mini", dtype="float32", pack=False)


def texts(count: int) -> list[str]:
    """Prompts of words, spaces, other scripts, emoji and tokens written out."""
    source = random.Random(0)
    pieces = [
        *("what color is the star?", "detect", "caption en", " ", "  ", "   ", "\n", "\t", "tractor"),
        *("Überraschung", "你好", "日本語", "привет", "مرحبا", "🦊", "👩‍👩‍👧", "🇩🇪", "é", "e\u0301", "𝔸"),
        *("<loc0001>", "<seg000>", "<eos>", "<image>", "<loc", "<0x0A>", "▁", "<<bos>>", "\ufeff", "\0"),
    ]
    letters = [*range(32, 127), *range(160, 400), *range(0x4E00, 0x4E40), *range(0x1F600, 0x1F640)]
    return [
        "".join(
            source.choice(pieces) if source.random() < 0.5 else chr(source.choice(letters))
            for _ in range(source.randint(0, 12))
        )
        for _ in range(count)
    ]


def test_ids_and_texts_are_the_tokenizers(mini: PaliGemma) -> None:
    asked = texts(2000)
    source = random.Random(1)
    ids = [[source.randrange(3200) for _ in range(source.randint(0, 20))] for _ in range(1000)]
    ids += [[source.randrange(4, 260) for _ in range(source.randint(0, 8))] for _ in range(1000)]
    found = run_engine(
        "tokenize", tokenizer=str(MINI / "tokenizer.json"), texts=asked, ids=ids
    )
    assert found["plain"] == [mini.processor.encode_plain(text) for text in asked]
    assert found["special"] == [
        mini.processor.tokenizer.encode(text, add_special_tokens=False).ids for text in asked
    ]
    assert found["decoded"] == [
        mini.processor.tokenizer.decode(one, skip_special_tokens=False) for one in ids
    ]


def test_pictures_are_resized_to_the_byte(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    images, sides = [], []
    for number in range(200):
        height, width = source.integers(1, 1 + (40 if number % 2 else 400), 2)
        noise = source.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 3 == 0:
            noise = np.where(noise > 127, np.uint8(255), np.uint8(0))  # bicubic overshoots
        images.append(Image.fromarray(noise))
        sides.append(int(source.choice([128, 224, 64, 33])))
    stored = [one | {"side": side} for one, side in zip(store(tmp_path, images), sides, strict=True)]
    run_engine("resize", pictures=stored, out=str(tmp_path / "out"))
    found = np.fromfile(tmp_path / "out", dtype=np.uint8)
    for image, side in zip(images, sides, strict=True):
        expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).ravel()
        mine, found = found[: expected.size], found[expected.size :]
        assert (mine == expected).all(), (image.size, side)


@pytest.mark.parametrize("wasm", [True, False], ids=["wasm", "javascript"])
def test_logits_and_tokens_are_torchs(mini: PaliGemma, tmp_path: Path, wasm: bool) -> None:
    images = [shapes(seed) for seed in range(50 if wasm else 2)]
    found = run_engine(
        "answers",
        folder=str(MINI),
        wasm=wasm,
        pictures=store(tmp_path, images),
        requests=[{"prompt": prompt, "maxNewTokens": LIMIT} for prompt in PROMPTS],
        out=str(tmp_path / "logits"),
    )["found"]
    logits = floats(tmp_path / "logits", -1, mini.model.config.real_vocab_size)
    asked = [(image, prompt) for image in images for prompt in PROMPTS]
    worst = 0.0
    for (image, prompt), one in zip(asked, found, strict=True):
        mine, logits = logits[: len(one["ids"])], logits[len(one["ids"]) :]
        batch = mini.processor(prompt, image)
        assert batch["input_ids"][0].tolist() == one["prompt"]
        said = torch.tensor([one["ids"][:-1]], dtype=torch.long)
        ids = torch.cat((batch["input_ids"], said), 1)
        types = torch.cat((torch.zeros_like(batch["input_ids"]), torch.ones_like(said)), 1)
        with torch.inference_mode():
            expected = mini.model(ids, batch["pixel_values"], token_type_ids=types).logits
        expected = expected[0, len(one["prompt"]) - 1 :, : mine.shape[1]]
        worst = max(worst, (expected - torch.from_numpy(mine)).abs().max().item())
        assert expected.argmax(-1).tolist() == one["ids"]
    assert worst < 1e-4


def test_boxes_under_the_grammar_are_the_packages(mini: PaliGemma, tmp_path: Path) -> None:
    images = [shapes(seed) for seed in range(100, 106)]
    labels = ["circle", "red square", "triangle"]
    found = run_engine(
        "answers",
        folder=str(MINI),
        wasm=True,
        pictures=store(tmp_path, images),
        requests=[
            {"prompt": detect_prompt(labels), "labels": labels, "masks": False, "maxNewTokens": 60},
            {"prompt": segment_prompt(labels), "labels": labels, "masks": True, "maxNewTokens": 60},
        ],
        out=str(tmp_path / "logits"),
    )["found"]
    expected = []
    for image in images:
        for prompt, masks in ((detect_prompt(labels), False), (segment_prompt(labels), True)):
            grammar = ObjectGrammar(mini.processor, labels, masks)
            done = mini.complete([image], [prompt], grammars=[grammar], max_new_tokens=60)[0]
            expected.append(done.ids + [mini.processor.eos_token_id] * done.ended)
    assert [one["ids"] for one in found] == expected


def test_masks_are_the_codecs(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    codes = source.integers(0, 128, (20, 16))
    path = MINI / "mask_codec.safetensors"
    run_engine("masks", codec=str(path), codes=codes.tolist(), out=str(tmp_path / "masks"))
    expected = MaskCodec.load(path).decode(torch.from_numpy(codes))
    found = torch.from_numpy(floats(tmp_path / "masks", 20, 64, 64))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_kernel_is_its_sources() -> None:
    wasmtime = pytest.importorskip("wasmtime", reason="wasmtime, which reads .wat, is not installed")
    source = (ENGINE / "kernel.wat").read_text(encoding="utf-8")
    assert bytes(wasmtime.wat2wasm(source)) == (ENGINE / "kernel.wasm").read_bytes()
