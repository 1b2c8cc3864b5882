"""The compiled kernels' tests run where their extra is installed and the processor fits."""

from __future__ import annotations

import pytest

from paliglass.fast import decode, matrix, threads
from paliglass.fast.threads import Team


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if matrix.is_available():
        return
    for item in items:
        if "tests/fast" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="needs numba and dot products of bytes"))


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def team(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Team:
    """What the kernels run on, however small the work."""
    made = Team(request.param)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    for module in (matrix, decode):
        monkeypatch.setattr(module, "team", lambda: made)
    return made
