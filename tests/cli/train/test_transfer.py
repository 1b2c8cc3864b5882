"""A transfer in small: mini learns to be asked in another way, and answers about new pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.cli.helpers import Result

from paliglass import load

COLOURS = ("red", "blue", "green", "yellow", "black", "orange")
QUESTION = "which paint?"  # "which colour?" it knows; this, it says, cannot be told


def drawn(path: Path, colour: str, rng: np.random.Generator) -> None:
    image = Image.new("RGB", (128, 128), "white")
    x, y = (int(v) for v in rng.integers(4, 70, 2))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + 50, y + 50), fill=colour)
    image.save(path)


@pytest.mark.parametrize(
    "flags",
    ["--lora 8 --train decoder --learning-rate 5e-3", "--train all --learning-rate 3e-4"],
    ids=["lora", "full"],
)
def test_mini_learns_a_new_question(cli: Callable[..., Result], flags: str) -> None:
    rng = np.random.default_rng(0)
    rows, held_out = [], []
    for number in range(48):
        name, colour = f"{number}.png", COLOURS[number % len(COLOURS)]
        drawn(Path(name), colour, rng)
        row = {"image": name, "prefix": f"answer en {QUESTION}", "suffix": colour}
        (rows if number < 36 else held_out).append(row)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def score(model: str, adapter: str | None = None) -> float:
        said = load(model, device="cpu", dtype="float32", adapter=adapter).ask(
            [row["image"] for row in held_out], QUESTION
        )
        return sum(a == row["suffix"] for a, row in zip(said, held_out, strict=True)) / len(said)

    before = score("mini")
    arguments = "train finetune --model mini --data train.jsonl --out run --steps 24 --batch-size 8"
    result = cli(*arguments.split(), "--precision", "fp32", *flags.split())
    assert result.code == 0, result.err
    is_lora = "lora" in flags
    after = score("mini", "run/adapter") if is_lora else score("run/model")
    assert before < 0.3
    assert after > 0.8
