"""The recipes as the page shows them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from paliglass.errors import PaliglassError
from paliglass.training.finetuner import PARTS
from paliglass.training.recipes import RECIPES, FinetuneRecipe, picture_side

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


def test_the_page_shows_every_recipe() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = {
        cells[1].strip(): cells for line in page.splitlines() if len(cells := line.split("|")) == 8
    }
    for name, recipe in RECIPES.items():
        keys = ("learning_rate", "weight_decay", "epochs", "batch_size", "label_smoothing")
        assert [float(cell) for cell in shown[name][2:7]] == [recipe[key] for key in keys], name
        assert recipe.get("train", "all") in PARTS


def test_a_number_is_the_side_of_the_pictures() -> None:
    assert picture_side("vqav2-448") == 448
    assert picture_side("cococap") is None
    assert {picture_side(name) for name in RECIPES} == {None, 224, 448, 896}


def test_what_is_not_given_follows_from_the_rest() -> None:
    plain = FinetuneRecipe(epochs=1.5, batch_size=4).complete(examples=8)
    assert (plain.steps, plain.epochs, plain.learning_rate, plain.lora_alpha) == (
        3,
        None,
        2e-5,
        None,
    )
    adapters = FinetuneRecipe(steps=2, epochs=9, lora=8).complete()
    assert (adapters.steps, adapters.learning_rate, adapters.lora_alpha) == (2, 2e-4, 16.0)
    given = FinetuneRecipe(steps=2, lora=8, lora_alpha=4, learning_rate=0.0).complete()
    assert (given.learning_rate, given.lora_alpha) == (0.0, 4)
    assert given.complete() == given
    with pytest.raises(PaliglassError, match="say when to end"):
        FinetuneRecipe().complete(8)
    with pytest.raises(PaliglassError, match="this data has no end"):
        FinetuneRecipe(epochs=2).complete()


def test_published_recipes_name_fields_and_all_have_a_word_of_help() -> None:
    known = {field.name: field.metadata for field in fields(FinetuneRecipe)}
    assert all(recipe.keys() <= known.keys() for recipe in RECIPES.values())
    assert all(metadata["help"] for metadata in known.values())
