"""Compiled products of packed matrices, run by several threads at once.

Every thread calls the same function and takes its tasks from counters that all share: one that is
held up takes fewer. Between steps that need each other's results all of them wait at a barrier.
Memory is handed over as addresses. What a number comes to does not depend on who computes it.

Tokens lie in tiles of 1, 2, 4 or 8: T tokens × K inputs as K/4 × T × 4 bytes, their scales and sums
as K/group × T.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import types

from paliglass.fast.instructions import (
    BFLOAT16,
    FLOAT32,
    WIDE,
    add_16,
    fetch_add,
    gelu_mul,
    int4_tile_1,
    int4_tile_2,
    int4_tile_4,
    int4_tile_8,
    int4_tile_wide,
    int8_tile_1,
    int8_tile_2,
    int8_tile_4,
    int8_tile_8,
    int8_tile_wide,
    load_shared,
    pack_group_4,
    pack_group_4_bf16,
    pack_row_8,
    pack_row_8_bf16,
    pause,
    quantize_group_4,
    quantize_group_4_bf16,
    quantize_group_8,
    quantize_group_8_bf16,
    scale_16,
    to_bf16,
)
from paliglass.fast.layout import BLOCK, BYTES, GROUP, SPAN

F = TypeVar("F", bound=Callable[..., Any])

LINE = 64  # bytes of a processor's cache line: what threads share lies on lines of its own
SPINS = 2000  # looks at a barrier before the core is offered to others
TASK_BYTES = 1 << 17  # of weights, about, in one task
# What describes a matrix to compiled code.
BITS, WEIGHTS, SCALES, BLOCKS, SPANS, FIELDS = range(6)
SPAN_8, SPAN_4 = SPAN * BYTES[8], SPAN * BYTES[4]  # bytes of a block's 64 inputs
GROUP_8, GROUP_4 = GROUP[8], GROUP[4]
SCRATCH = 4 * SPAN * 16  # bytes


def compiled(function: F) -> F:
    """Compiled at the first call, without the interpreter's lock; kept on disk for the next."""
    decorate = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)
    return decorate(function)  # type: ignore[no-any-return]


if sys.platform == "win32":
    import ctypes

    from llvmlite import binding

    _yield = ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value
    binding.add_symbol("sched_yield", _yield)
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@compiled
def next_task(sync: int, counter: int) -> int:
    """The number of the next task of a step: 0, 1, 2 …; each goes to one thread."""
    return fetch_add((sync + LINE * (1 + counter), 1))


@compiled
def wait_for_all(sync: int, threads: int) -> None:
    """Returns once all threads have come here: each counts itself, for ever upwards."""
    target = (fetch_add((sync, 1)) // threads + 1) * threads
    spins = 0
    while load_shared((sync,)) < target:
        pause((0,))
        spins += 1
        if spins > SPINS:
            sched_yield()


@compiled
def multiply_blocks(
    bits: int,
    rows: int,
    y: int,
    y_stride: int,
    weights: int,
    scales: int,
    first: int,
    last: int,
    tokens: int,
    token_scales: int,
    sums: int,
    spans: int,
) -> None:
    """A tile of tokens times the blocks first … last − 1, float32 at y."""
    size = spans * (SPAN_8 if bits == 8 else SPAN_4)
    block = first
    while block < last:
        call = (
            y + 4 * BLOCK * (block - first),
            y_stride,
            weights + block * size,
            size,
            scales + 4 * BLOCK * block,
            tokens,
            token_scales,
            sums,
            spans,
        )
        is_wide = rows == 8 and block + WIDE <= last
        if bits == 8:
            if is_wide:
                int8_tile_wide(call)
            elif rows == 1:
                int8_tile_1(call)
            elif rows == 2:
                int8_tile_2(call)
            elif rows == 4:
                int8_tile_4(call)
            else:
                int8_tile_8(call)
        elif is_wide:
            int4_tile_wide(call)
        elif rows == 1:
            int4_tile_1(call)
        elif rows == 2:
            int4_tile_2(call)
        elif rows == 4:
            int4_tile_4(call)
        else:
            int4_tile_8(call)
        block += WIDE if is_wide else 1


@compiled
def quantize_groups(
    kind: int,
    bits: int,
    rows: int,
    source: int,
    groups: int,
    tokens: int,
    token_scales: int,
    sums: int,
) -> None:
    """Some groups of one token, read at source, into its place in a tile."""
    inputs = GROUP_8 if bits == 8 else GROUP_4
    for g in range(groups):
        call = (
            source + g * inputs * (2 if kind == BFLOAT16 else 4),
            tokens + g * inputs * rows,
            4 * rows,
            token_scales + 4 * g * rows,
            sums + 4 * g * rows,
        )
        if kind == BFLOAT16:
            if bits == 8:
                quantize_group_8_bf16(call)
            else:
                quantize_group_4_bf16(call)
        elif bits == 8:
            quantize_group_8(call)
        else:
            quantize_group_4(call)


@compiled
def project(
    sync: int, counter: int, matrix: Any, rows: int, tiles: int, tokens: Any, y: int, y_stride: int
) -> None:
    """Tiles of tokens times a whole matrix, float32 at y; the threads share the blocks.

    tokens: the addresses of the integers, their scales and their sums.
    """
    bits, blocks, spans = matrix[BITS], matrix[BLOCKS], matrix[SPANS]
    groups = spans * (1 if bits == 8 else 2)
    step = task_blocks(bits, spans)
    while True:
        first = next_task(sync, counter) * step
        if first >= blocks:
            return
        for tile in range(tiles):
            multiply_blocks(
                bits,
                rows,
                y + 4 * BLOCK * first + tile * rows * y_stride,
                y_stride,
                matrix[WEIGHTS],
                matrix[SCALES],
                first,
                min(blocks, first + step),
                tokens[0] + tile * rows * spans * SPAN,
                tokens[1] + tile * rows * groups * 4,
                tokens[2] + tile * rows * groups * 4,
                spans,
            )


@compiled
def task_blocks(bits: int, spans: int) -> int:
    """Blocks of a task: about TASK_BYTES, in pairs if more than one."""
    step = TASK_BYTES // (spans * (SPAN_8 if bits == 8 else SPAN_4))
    return 1 if step < 2 else step // 2 * 2


@compiled
def gate(
    sync: int,
    counter: int,
    gate_matrix: Any,
    up_matrix: Any,
    next_bits: int,
    rows: int,
    tiles: int,
    tokens: Any,
    hidden: Any,
    scratch: int,
) -> None:
    """gelu(gate(x)) · up(x), quantized for a matrix of `next_bits`; the threads share channels.

    tokens, hidden: addresses as in `project`, of what comes in and goes out. scratch: 1024 float32
    of this thread's own. Both matrices have the same shape and bits.
    """
    bits, blocks, spans = gate_matrix[BITS], gate_matrix[BLOCKS], gate_matrix[SPANS]
    groups = spans * (1 if bits == 8 else 2)
    next_spans = (blocks + 3) // 4
    next_groups = next_spans * (1 if next_bits == 8 else 2)
    per_span = 1 if next_bits == 8 else 2
    other = scratch + 4 * SPAN * 8
    while True:
        span = next_task(sync, counter)
        if span >= next_spans:
            return
        first, last = 4 * span, min(blocks, 4 * span + 4)
        for tile in range(tiles):
            x = tokens[0] + tile * rows * spans * SPAN
            x_scales = tokens[1] + tile * rows * groups * 4
            x_sums = tokens[2] + tile * rows * groups * 4
            for matrix, y in ((gate_matrix, scratch), (up_matrix, other)):
                multiply_blocks(
                    bits,
                    rows,
                    y,
                    4 * SPAN,
                    matrix[WEIGHTS],
                    matrix[SCALES],
                    first,
                    last,
                    x,
                    x_scales,
                    x_sums,
                    spans,
                )
            for t in range(rows):
                y = scratch + 4 * SPAN * t
                for block in range(last - first):
                    gelu_mul((y + 4 * BLOCK * block, y + 4 * BLOCK * block + 4 * SPAN * 8))
                for block in range(last - first, 4):
                    scale_16((y + 4 * BLOCK * block, np.float32(0.0)))
                at = 4 * (tile * rows * next_groups + span * per_span * rows + t)
                quantize_groups(
                    FLOAT32,
                    next_bits,
                    rows,
                    y,
                    per_span,
                    hidden[0] + (tile * next_spans + span) * rows * SPAN + 4 * t,
                    hidden[1] + at,
                    hidden[2] + at,
                )


@compiled
def quantize_tokens(
    sync: int,
    counter: int,
    kind: int,
    bits: int,
    rows: int,
    source: int,
    stride: int,
    count: int,
    spans: int,
    tokens: Any,
) -> None:
    """`count` tokens, `stride` bytes apart, into tiles; the threads share tiles."""
    groups = spans * (1 if bits == 8 else 2)
    while True:
        tile = next_task(sync, counter)
        if tile * rows >= count:
            return
        for t in range(min(rows, count - tile * rows)):
            at = 4 * (tile * rows * groups + t)
            quantize_groups(
                kind,
                bits,
                rows,
                source + (tile * rows + t) * stride,
                groups,
                tokens[0] + tile * rows * spans * SPAN + 4 * t,
                tokens[1] + at,
                tokens[2] + at,
            )


@compiled
def finish(
    sync: int, counter: int, kind: int, y: int, y_stride: int, bias: int, out: int, count: int
) -> None:
    """Adds a float32 bias, if any, and stores rows of float32 as another kind; shared by rows."""
    while True:
        row = next_task(sync, counter)
        if row >= count:
            return
        for i in range(y_stride // (4 * BLOCK)):
            at = y + row * y_stride + 4 * BLOCK * i
            if bias:
                add_16((at, bias + 4 * BLOCK * i))
            if kind == BFLOAT16:
                to_bf16((out + row * y_stride // 2 + 2 * BLOCK * i, at))


@compiled
def linear(
    thread: int,
    threads: int,
    sync: int,
    matrix: Any,
    rows: int,
    source: Any,
    tokens: Any,
    y: int,
    bias: int,
    out: int,
) -> None:
    """x · Wᵀ + bias. source: kind, address, stride and count of x; y: float32; out: of x's kind."""
    kind, address, stride, count = source
    tiles = (count + rows - 1) // rows
    bits, y_stride = matrix[BITS], 4 * BLOCK * matrix[BLOCKS]
    quantize_tokens(sync, 0, kind, bits, rows, address, stride, count, matrix[SPANS], tokens)
    wait_for_all(sync, threads)
    project(sync, 1, matrix, rows, tiles, tokens, y, y_stride)
    wait_for_all(sync, threads)
    if bias or kind == BFLOAT16:
        finish(sync, 2, kind, y, y_stride, bias, out, count)
        wait_for_all(sync, threads)


@compiled
def geglu(
    thread: int,
    threads: int,
    sync: int,
    matrices: Any,
    rows: int,
    source: Any,
    tokens: Any,
    hidden: Any,
    scratch: int,
    y: int,
    out: int,
) -> None:
    """down(gelu(gate(x)) · up(x)). matrices: gate, up, down; else as `linear` and `gate`."""
    kind, address, stride, count = source
    tiles = (count + rows - 1) // rows
    down = matrices[2]
    y_stride = 4 * BLOCK * down[BLOCKS]
    quantize_tokens(
        sync,
        0,
        kind,
        matrices[0, BITS],
        rows,
        address,
        stride,
        count,
        matrices[0, SPANS],
        tokens,
    )
    wait_for_all(sync, threads)
    own = scratch + thread * SCRATCH
    gate(sync, 1, matrices[0], matrices[1], down[BITS], rows, tiles, tokens, hidden, own)
    wait_for_all(sync, threads)
    project(sync, 2, down, rows, tiles, hidden, y, y_stride)
    wait_for_all(sync, threads)
    if kind == BFLOAT16:
        finish(sync, 3, kind, y, y_stride, 0, out, count)
        wait_for_all(sync, threads)


@compiled
def pack(
    thread: int,
    threads: int,
    sync: int,
    kind: int,
    source: int,
    stride: int,
    count: int,
    matrix: Any,
) -> None:
    """Quantizes `count` rows of weights, `stride` bytes apart, into a matrix; shared by blocks."""
    bits, spans = matrix[BITS], matrix[SPANS]
    size = spans * (SPAN_8 if bits == 8 else SPAN_4)
    width = 2 if kind == BFLOAT16 else 4
    while True:
        block = next_task(sync, 0)
        if block >= matrix[BLOCKS]:
            break
        target = matrix[WEIGHTS] + block * size
        for c in range(min(BLOCK, count - block * BLOCK)):
            row = source + (block * BLOCK + c) * stride
            if bits == 8:
                scale = matrix[SCALES] + 4 * (block * BLOCK + c)
                if kind == BFLOAT16:
                    pack_row_8_bf16((row, target + 4 * c, scale, spans))
                else:
                    pack_row_8((row, target + 4 * c, scale, spans))
            else:
                for g in range(2 * spans):
                    base = target + g // 2 * SPAN_4
                    call = (
                        row + g * GROUP_4 * width,
                        base + 4 * BLOCK + g % 2 * 256 + 4 * c,
                        base + g % 2 * 2 * BLOCK + 2 * c,
                    )
                    if kind == BFLOAT16:
                        pack_group_4_bf16(call)
                    else:
                        pack_group_4(call)
    wait_for_all(sync, threads)
