"""A server of mini in float32, on a port of 127.0.0.1, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.serving.helpers import Running, mini, running

from paliglass.model import PaliGemma
from paliglass.serving import Engine


@pytest.fixture(scope="session")
def model() -> PaliGemma:
    return mini()


@pytest.fixture(scope="session")
def server(model: PaliGemma) -> Iterator[Running]:
    pytest.importorskip("fastapi")
    with running(Engine(lambda: model), with_dual=True) as found:
        yield found
