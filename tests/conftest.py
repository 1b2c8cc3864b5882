"""For every test: no network, no deadline for a slow machine to miss, accelerate as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples every time: what fails fails again. FUZZ=1 looks for others.
settings.register_profile("paliglass", deadline=None, derandomize="FUZZ" not in os.environ)
settings.load_profile("paliglass")


@pytest.fixture(autouse=True)
def one_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 decodes compiled where it can: on a busy machine two loads may choose unlike ways, whose
    answers differ by rounding.
    """
    if "times_layers" not in request.keywords:
        monkeypatch.setattr("paliglass.fast.compiled_model._is_faster", lambda *_: True)


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process: each test starts without."""
    yield
    forget_accelerator()


def forget_accelerator() -> None:
    """As if accelerate had not been used in this process."""
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
