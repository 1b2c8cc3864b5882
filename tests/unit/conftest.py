"""What several tests of units share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.tiny import tiny_model, tiny_processor, worded_config
from workshop.int8_quality import EMULATION

from paliglass.checkpoints import save_folder
from paliglass.fast import int8


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_folder(tiny_model(worded_config()), folder, tiny_processor())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A good folder, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(
    params=[
        pytest.param(
            "oneDNN", marks=pytest.mark.skipif(not int8.has_kernel(), reason="no int8 kernel here")
        ),
        "integers",
    ]
)
def int8_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's int8 kernel, where it has one, and its arithmetic in plain integers."""
    if request.param == "integers":
        for name, function in EMULATION.items():
            monkeypatch.setattr(int8, name, function)
