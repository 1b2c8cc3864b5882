"""What was measured at load is told to who asks why a way was chosen, and decides nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paliglass.fast import accelerate, explain
from paliglass.fast.compiled import library
from paliglass.fast.compiled_model import CompiledPaliGemma
from paliglass.fast.matrix import is_available
from paliglass.fast.timings import LayerTimes, recall, remember
from tests.tiny import tiny_config, tiny_model

CONFIG = tiny_config().text_config
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    if is_available():
        library()  # made, or read, before the place for it is another one
    monkeypatch.setenv("PALIGLASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.times_layers
def test_a_load_keeps_what_it_measured_and_chose() -> None:
    assert recall(CONFIG) is None
    assert not any("at the last load" in line for line in explain(HALF, "int8", CONFIG))
    model = tiny_model().to(HALF)
    accelerate(model, "int8")
    found = recall(CONFIG)
    assert found is not None
    assert min(found.modules_ms, found.compiled_ms) > 0
    assert found.is_compiled_faster == isinstance(model, CompiledPaliGemma)
    assert str(found) in explain(HALF, "int8", CONFIG)
    assert recall(tiny_config(intermediate_size=80).text_config) is None


def test_both_choices_are_told_with_their_times() -> None:
    told = str(LayerTimes(4.25, 3.0))
    assert "4.25 ms through a layer by modules, 3 ms compiled: compiled it is" in told
    assert str(LayerTimes(3.0, 4.25)).endswith("by modules it is")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"modules_ms": "much"}', '{"other": 1}'])
def test_a_damaged_file_tells_nothing(damage: str, cache: Path) -> None:
    remember(CONFIG, LayerTimes(2.0, 1.0))
    assert recall(CONFIG) == LayerTimes(2.0, 1.0)
    [path] = cache.iterdir()
    path.write_text(damage)
    assert recall(CONFIG) is None


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PALIGLASS_CACHE", str(tmp_path / "file" / "cache"))
    remember(CONFIG, LayerTimes(2.0, 1.0))
    assert recall(CONFIG) is None
