"""What several tests of units share."""

from __future__ import annotations

import pytest
from workshop.int8_quality import EMULATION

from paliglass.fast import int8


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
