"""mini as transformers loads it: the same words about the gallery's pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import paliglass
from paliglass.checkpoints.hub import locate
from paliglass.generation import Request

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
PICTURES = sorted(GALLERY.glob("*.png"))
PROMPTS = {
    "caption": "caption en",
    "answer": "answer en what is in the picture?",
    "detect": "detect dog ; tractor ; house",
    "segment": "segment star",
    "ocr": "ocr",
}
LENGTH = 32


@pytest.fixture(scope="module")
def theirs() -> transformers.PaliGemmaForConditionalGeneration:
    found = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        locate("mini"), dtype=torch.float32
    )
    return found.eval()


@pytest.fixture(scope="module")
def ours() -> paliglass.PaliGemma:
    return paliglass.load("mini", device="cpu", dtype="float32")


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_transformers_gives_the_same_tokens(
    path: Path, ours: paliglass.PaliGemma, theirs: transformers.PaliGemmaForConditionalGeneration
) -> None:
    prompt = PROMPTS[path.stem.partition("-")[0]]
    picture = Image.open(path).convert("RGB")
    request = Request(prompt, [ours.processor.prepare(picture)], max_new_tokens=LENGTH)
    [done] = ours.complete([request])
    batch = transformers.AutoProcessor.from_pretrained(locate("mini"))(
        picture, f"<image>{prompt}", return_tensors="pt"
    )
    with torch.inference_mode():
        said = theirs.generate(**batch, max_new_tokens=LENGTH, do_sample=False)
    new = said[0, batch["input_ids"].shape[1] :].tolist()
    assert done.ids == [token for token in new if token != 1]
