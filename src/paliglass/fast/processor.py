"""Which dot product of bytes this processor has: what compiled code is made of.

AVX-512 VNNI, AVX-VNNI    vpdpbusd
AVX2                      vpmaddubsw, whose 16-bit sums would overflow for int8: there
                          |w| · (±x) is summed
ARM                       sdot, of signed bytes
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from llvmlite import binding

__all__ = ["INSTRUCTION", "Instruction", "cpu_name", "features"]


@dataclass(frozen=True)
class Instruction:
    """A dot product of bytes.

    lanes: int32 sums of a vector. rows: tokens whose sums are kept beside each other; sums: vectors
    of them that fit in registers. is_signed: it takes signed weights, so there is nothing to take
    off.
    """

    name: str
    lanes: int
    rows: int
    sums: int
    is_signed: bool = False


def cpu_name() -> str:
    """LLVM's name, or what NUMBA_CPU_NAME says: what numba compiles for."""
    return os.environ.get("NUMBA_CPU_NAME") or str(binding.get_host_cpu_name())


def features() -> str:
    """As "+avx2,-avx512f"; NUMBA_CPU_FEATURES likewise."""
    return os.environ.get("NUMBA_CPU_FEATURES") or str(binding.get_host_cpu_features().flatten())


def _find() -> Instruction | None:
    has = features().split(",")
    if platform.machine().lower() in ("arm64", "aarch64"):
        return Instruction("sdot", 4, 4, 16, is_signed=True) if "+dotprod" in has else None
    if {"+avx512vnni", "+avx512vl", "+avx512bw"} <= set(has):
        return Instruction("vpdpbusd.512", 16, 8, 16)
    if "+f16c" in has and ("+avxvnni" in has or {"+avx512vnni", "+avx512vl"} <= set(has)):
        return Instruction("vpdpbusd.256", 8, 4, 8)
    if {"+avx2", "+f16c", "+fma"} <= set(has):
        return Instruction("vpmaddubsw", 8, 4, 8, is_signed=True)
    return None


INSTRUCTION = _find()
