"""What a matrix costs in each format: milliseconds of one product, for so many tokens.

    python -m workshop.matrix_formats

One matrix of PaliGemma 3B's MLP (16384 × 2048), as torch multiplies bfloat16, as paliglass does in
bfloat16 and int8, as torch multiplies int4 (weights alone, groups of 64), and as compiled functions
multiply int8 and int4, where they can be had. Formats in turn in each round, medians; eighteen such
matrices in turn, so that none is in a cache.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast.int8 import Int8Linear
from paliglass.fast.matrix import is_available, multiply, quantize
from paliglass.fast.packed import PackedLinear, can_pack
from paliglass.fast.widened import WidenedLinear
from workshop.commands import Threads, run

ROWS, COLUMNS = 16384, 2048
TOKENS = (1, 2, 4, 8, 32, 264)
MATRICES = 18
GROUP = 64  # weights that share an int4 scale and offset


def formats() -> dict[str, Callable[[], Callable[[Tensor], Tensor]]]:
    """By name, what makes a matrix: bfloat16 tokens × COLUMNS → × ROWS."""

    def plain() -> nn.Linear:
        return nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.bfloat16)

    def int8() -> Int8Linear:
        layer = Int8Linear.quantize(plain().weight)
        layer.pack()
        return layer

    def int4() -> Callable[[Tensor], Tensor]:
        integers = torch.randint(0, 16, (ROWS, COLUMNS), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
        scales = torch.ones(COLUMNS // GROUP, ROWS, 2, dtype=torch.bfloat16)
        return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)

    def ours() -> nn.Module:
        return PackedLinear(nn.Parameter(plain().weight)) if can_pack() else WidenedLinear(plain())

    def compiled(bits: int) -> Callable[[Tensor], Tensor]:
        packed = quantize(plain().weight.detach(), bits)
        return lambda x: multiply(x, packed)

    found: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "bfloat16, torch": lambda: (lambda w: lambda x: F.linear(x, w))(plain().weight),
        "bfloat16": ours,
        "int8": int8,
        "int4, torch": int4,
    }
    if is_available():
        found |= {f"int{bits}, compiled": partial(compiled, bits) for bits in (8, 4)}
    return found


@torch.inference_mode()
def measure(rounds: int) -> dict[str, dict[int, float]]:
    """By format and tokens, the median seconds of a product."""
    made = {name: [make() for _ in range(MATRICES)] for name, make in formats().items()}
    taken: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in made}
    for number in range(rounds + 1):
        for tokens in TOKENS:
            x = torch.randn(tokens, COLUMNS, dtype=torch.bfloat16)
            for name, matrices in made.items():
                start = time.perf_counter()
                for matrix in matrices:
                    matrix(x)
                if number:  # the first round packs, and warms
                    taken[name][tokens].append((time.perf_counter() - start) / MATRICES)
    return {
        name: {tokens: statistics.median(some) for tokens, some in times.items()}
        for name, times in taken.items()
    }


def matrix_formats(
    rounds: Annotated[int, typer.Option(min=1, help="Of all formats in turn.")] = 5,
    threads: Threads = 2,
) -> None:
    """Measure what a product takes by the format of its matrix, and by how many tokens it has."""
    torch.set_num_threads(threads)
    found = measure(rounds)
    print(f"milliseconds, {threads} threads")
    print(f"| tokens | {' | '.join(found)} |")
    print("|---:" * (len(found) + 1) + "|")
    for tokens in TOKENS:
        row = " | ".join(f"{1e3 * times[tokens]:.1f}" for times in found.values())
        print(f"| {tokens} | {row} |")


if __name__ == "__main__":
    run(matrix_formats)
