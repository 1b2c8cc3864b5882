"""Machine code is made once, kept where nobody else writes, and read whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paliglass.fast import compiled, kernels
from paliglass.fast.compiled import cache_folder, library

SCRIPT = """
import sys, torch
from paliglass.fast.matrix import multiply, quantize
print(float(multiply(torch.ones(1, 64), quantize(torch.ones(16, 64), 8))[0, 3]))
print("numba" in sys.modules)
"""


def run(cache: Path) -> list[str]:
    environment = {**os.environ, "PALIGLASS_CACHE": str(cache)}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Counts them; what comes out is the code that is kept already."""
    library()
    folder = cache_folder()
    assert folder is not None
    known = compiled._read(folder / f"kernels-{compiled.source_key()}.o")
    assert known is not None
    monkeypatch.setenv("PALIGLASS_CACHE", str(tmp_path / "cache"))
    made: list[int] = []

    def emit_object() -> bytes:
        made.append(1)
        return known

    monkeypatch.setattr(kernels, "emit_object", emit_object)
    return made


def fresh() -> compiled.Library:
    return compiled._library.__wrapped__()


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "cache") == ["64.0", "True"]
    assert run(tmp_path / "cache") == ["64.0", "False"]


def test_what_is_kept_is_read_while_nothing_has_changed(
    compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert fresh()["linear"]
    assert len(compilations) == 1
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2,+fma,+f16c")
    fresh()
    assert len(compilations) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_code_is_made_anew(compilations: list[int], damage: str, tmp_path: Path) -> None:
    fresh()
    [path] = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    changed = bytes([whole[100] ^ 1])
    spoilt = {"cut": whole[:-9], "changed": whole[:100] + changed + whole[101:], "empty": b""}
    path.write_bytes(spoilt[damage])
    fresh()
    assert len(compilations) == 2
    assert path.read_bytes() == whole


@pytest.mark.skipif(sys.platform == "win32", reason="modes are Unix's")
def test_a_folder_that_others_may_write_to_is_not_used(
    compilations: list[int], tmp_path: Path
) -> None:
    fresh()
    folder = tmp_path / "cache"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cache_folder() is None
    fresh()
    assert len(compilations) == 2


def test_without_a_folder_it_goes_too(
    compilations: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PALIGLASS_CACHE", str(tmp_path / "file" / "cache"))
    assert fresh()["linear"]
    assert len(compilations) == 1
