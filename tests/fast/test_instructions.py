"""Every instruction this processor has gives the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
from paliglass.fast.processor import INSTRUCTION

BASE = "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
FEATURES = {"vpmaddubsw": BASE, "vpdpbusd.256": f"{BASE},+avx512f,+avx512vl,+avx512vnni"}
SCRIPT = """
import hashlib, torch
from paliglass.fast import matrix, processor
from tests.fast.test_matrix import normal
print(processor.INSTRUCTION.name)
found = hashlib.sha256()
for bits in (8, 4):
    packed = matrix.quantize(normal(130, 200), bits)
    for count in (1, 2, 3, 8, 21):
        y = matrix.multiply(normal(count, 200, seed=count), packed)
        found.update(y.numpy().tobytes())
print(found.hexdigest())
"""


def run(features: str | None, cache: Path) -> list[str]:
    environment = {**os.environ, "PALIGLASS_CACHE": str(cache)}
    if features is not None:
        environment |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(
    INSTRUCTION is None or INSTRUCTION.name != "vpdpbusd.512", reason="needs AVX-512 VNNI"
)
@pytest.mark.parametrize("name", FEATURES)
def test_other_instructions_give_the_same_bits(name: str, tmp_path: Path) -> None:
    assert INSTRUCTION is not None
    expected = run(None, tmp_path / "own")
    assert run(FEATURES[name], tmp_path / "other") == [name, expected[1]]
