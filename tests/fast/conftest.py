"""The compiled kernels' tests run where their extra is installed and the processor fits."""

from __future__ import annotations

import pytest

from paliglass.fast import matrix


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if matrix.is_available():
        return
    for item in items:
        if "tests/fast" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason="needs numba and dot products of bytes"))
