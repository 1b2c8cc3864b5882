"""The recipes as the page shows them."""

from __future__ import annotations

from pathlib import Path

from paliglass.training.finetuner import PARTS
from paliglass.training.recipes import RECIPES, picture_side

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"


def test_the_page_shows_every_recipe() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = {
        cells[1].strip(): cells for line in page.splitlines() if len(cells := line.split("|")) == 8
    }
    for name, recipe in RECIPES.items():
        keys = ("learning_rate", "weight_decay", "epochs", "batch_size", "label_smoothing")
        assert [float(cell) for cell in shown[name][2:7]] == [recipe[key] for key in keys], name
        assert recipe.get("train_part", "all") in PARTS


def test_a_number_is_the_side_of_the_pictures() -> None:
    assert picture_side("vqav2-448") == 448
    assert picture_side("cococap") is None
    assert {picture_side(name) for name in RECIPES} == {None, 224, 448, 896}
