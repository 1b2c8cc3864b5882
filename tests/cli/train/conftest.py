"""Training commands on eight coloured pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_tokenizer
from tests.tiny_dual import CONFIGS
from tests.training.runs import COLOURS, Training, coloured_pictures

from paliglass.files import write_json


@pytest.fixture
def finetuning(cli: Any, model_folder: Path) -> Training:
    """Teaches the tiny model the names of the colours: data/train.jsonl, data/held_out.jsonl."""
    coloured_pictures()
    lines = [
        json.dumps({"image": f"{colour}.png", "prefix": "answer en what colour?", "suffix": colour})
        for colour in COLOURS
    ]
    Path("data/train.jsonl").write_text("\n".join(lines))
    Path("data/held_out.jsonl").write_text("\n".join(lines[:3]))
    options = {"model": model_folder, "data": "data/train.jsonl", "steps": 8, "batch_size": 4}
    return Training(cli, ("train", "finetune"), {**options, "learning_rate": 1e-3})


@pytest.fixture
def dual(cli: Any) -> Training:
    """Trains a tiny dual encoder on them: data/pairs.jsonl, shape.json, tokenizer.json."""
    coloured_pictures()
    lines = [json.dumps({"image": f"{c}.png", "text": f"a {c} one"}) for c in COLOURS]
    Path("data/pairs.jsonl").write_text("\n".join(lines))
    write_json(Path("shape.json"), CONFIGS["vit-transformer-siglip"].to_dict())
    tiny_tokenizer().save("tokenizer.json")
    options = {"data": "data/pairs.jsonl", "shape": "shape.json", "tokenizer": "tokenizer.json"}
    return Training(cli, ("train", "contrastive"), {**options, "steps": 8, "batch_size": 4})
