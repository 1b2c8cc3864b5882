"""The README's figure has the shapes that a model passes on, and is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from tests.tiny import TINY, make_batch, tiny_model

from paliglass import PRESETS

DOCS = Path(__file__).parents[2] / "docs"


def test_shapes_are_those_that_flow() -> None:
    model = tiny_model()
    expected = runpy.run_path(str(DOCS / "architecture.py"))["shapes"](TINY, 5)
    seen = {}

    def note(name: str):
        return lambda module, inputs, output: seen.__setitem__(name, tuple(output.shape))

    for name, module in model.named_modules():
        if name in expected:
            module.register_forward_hook(note(name))
    with torch.inference_mode():
        model(**make_batch(TINY, [5]))
    assert seen == expected


def test_the_figure_is_up_to_date(tmp_path: Path) -> None:
    script = runpy.run_path(str(DOCS / "architecture.py"))
    script["draw"](PRESETS["paligemma-3b-224"], tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_text() == (DOCS / "architecture.svg").read_text()
