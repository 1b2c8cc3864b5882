"""python -m workshop.score: a model on the picture world's splits."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tests.tiny import tiny_model, tiny_processor, worded_config
from tests.workshop.conftest import Command
from workshop import score as module
from workshop.scene_scores import SCORED_SPLITS
from workshop.world import World
from workshop.world.art import Art

from paliglass.checkpoints import save_folder


@pytest.fixture
def model(command: Command) -> str:
    """A model with random weights: what it says means nothing, but is always the same."""
    save_folder(tiny_model(worded_config(), std=0.3), "tiny", tiny_processor())
    return "tiny"


def test_splits_are_scored(
    command: Command, model: str, art: Art, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "World", functools.partial(World, art=art))
    given = ["--model", model, "--limit", "2", "--prompts", "3", "--html", "page.html", "--json"]
    result = command(module.score, "--split", "test", "--split", "blank", *given)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert list(found) == ["test", "blank"]
    assert found["test"]["naming"]["n"] == 2
    assert Path("page.html").read_text().startswith("<!doctype html>")


def test_there_are_so_many_splits(command: Command) -> None:
    wrong = command(module.score, "--split", "nonsense")
    told = f"nonsense is none of {', '.join(SCORED_SPLITS[:3])}"
    assert (wrong.code, told in wrong.err) == (2, True)
