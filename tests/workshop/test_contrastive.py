"""python -m workshop.contrastive: a dual encoder from the picture world's pairs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from tests.training.runs import Training, log
from tests.workshop.conftest import Command
from workshop import contrastive as module
from workshop.contrastive import contrastive
from workshop.world import World
from workshop.world.art import Art

from paliglass.contrastive.folders import load_contrastive


@pytest.fixture
def dual(command: Command, art: Art, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Trains on scenes of art drawn in code."""
    monkeypatch.setattr(module, "World", functools.partial(World, art=art))
    parts: dict[str, Any] = {"image": "resnet", "text": "cbow", "loss": "clip", "image_size": 32}
    return Training(functools.partial(command, contrastive), (), {"batch_size": 4, **parts})


def test_it_learns_from_the_worlds_pairs(dual: Training) -> None:
    result = dual(steps=2)
    assert result.code == 0, result.err
    assert [line["step"] for line in log("run")] == [1, 2]
    model, processor = load_contrastive("run/model")
    assert model.config.image.image_size == 32
    assert processor.tokenizer.get_vocab_size() == 3201  # mini's words


def test_the_world_has_no_end(dual: Training) -> None:
    result = dual(epochs=1)
    assert (result.code, "this data has no end" in result.err) == (1, True)
    assert "say when to end" in dual().err
