"""Compiled products of packed matrices, run by several threads at once.

Every thread calls the same function and takes its tasks from counters that all share: one that is
held up takes fewer. Between steps that need each other's results all of them wait at a barrier.
Memory is handed over as addresses. What a number comes to does not depend on who computes it.

Tokens lie in tiles of 1, 2, 4 or 8: T tokens × K inputs as K/4 × T × 4 bytes, their scales and sums
as K/group × T.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding
from numba import types
from numba.core import compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from paliglass.fast.instructions import (
    BFLOAT16,
    FLOAT32,
    WIDE,
    add_16,
    fetch_add,
    gelu_mul,
    int4_tile,
    int8_tile,
    load_int,
    load_shared,
    pack_group_4,
    pack_row_8,
    pause,
    quantize_group_4,
    quantize_group_8,
    scale_16,
    store_16,
)
from paliglass.fast.layout import BLOCK, GROUP, PANEL, SCRATCH, SPAN, SPAN_4, SPAN_8
from paliglass.fast.threads import LINE

F = TypeVar("F", bound=Callable[..., Any])

SPINS = 1000  # looks at a barrier before the thread sleeps: some 15 µs
TASK_BYTES = 1 << 17  # of weights, about, in one task
# What describes a matrix to compiled code: int64, so many bytes from its address.
BITS, WEIGHTS, SCALES, BLOCKS, SPANS, FIELDS = (8 * i for i in range(6))
GROUP_8, GROUP_4 = GROUP[8], GROUP[4]
PANEL_BLOCKS = PANEL // BLOCK


def compiled(function: F) -> F:
    """A small function, compiled into those that call it."""
    decorate = numba.njit(nogil=True, error_model="numpy", boundscheck=False)
    return cast(F, decorate(function))


_functions: list[tuple[str, Callable[..., None], int]] = []  # with their numbers of arguments


def compiled_once(function: F) -> F:
    """Of int64 alone; others call it by its name in the object file.

    numba compiles what a function calls anew in every caller: seconds, were it the products.
    """
    count, name = len(signature(function).parameters), f"paliglass_{function.__name__}"
    _functions.append((name, function, count))
    binding.add_symbol(name, 1)  # numba wants to see one; what it links itself is never called
    return cast(F, types.ExternalFunction(name, types.void(*[types.int64] * count)))


def entry(function: F) -> F:
    """What `Team.run` runs on each thread; see there and `compiled.Library`."""
    _functions.append((f"paliglass_{function.__name__}", function, 4))
    return function


def emit_object() -> bytes:
    """An object file with all functions that were decorated so far."""
    target = registry.cpu_target
    parts, library = [], None
    with global_compiler_lock:
        for name, function, count in _functions:
            flags = compiler.Flags()
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            flags.error_model = "numpy"
            result = compiler.compile_extra(
                target.typing_context,
                target.target_context,
                function,
                [types.int64] * count,
                types.void,
                flags,
                {},
            )
            library = result.library
            library.finalize()  # links what it calls, and optimizes
            # numba's functions take places for a result and an exception too.
            arguments = ", ".join(f"i64 %{i}" for i in range(count))
            wrapper = f"""
                define void @{name}({arguments}) {{
                    %result = alloca ptr
                    %error = alloca ptr
                    call i32 @"{result.fndesc.mangled_name}"(ptr %result, ptr %error, {arguments})
                    ret void
                }}"""
            parts.append(binding.parse_assembly(library.get_llvm_str() + wrapper))
        assert library is not None
        for part in parts[1:]:
            parts[0].link_in(part)
        absent = [
            function.name
            for function in parts[0].functions
            if function.is_declaration and function.name.startswith(("_ZN", "paliglass_", "numba"))
        ]
        assert not absent, absent  # would be a jump to nowhere
        return bytes(library.codegen._tm.emit_object(parts[0]))


# Linux lets a thread sleep until a number in memory changes (futex); elsewhere it offers its core.
HAS_FUTEX = sys.platform == "linux"
FUTEX = 98 if platform.machine() == "aarch64" else 202
FUTEX_WAIT, FUTEX_WAKE = 128, 129  # among the threads of this process
syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 5))
if sys.platform == "win32":
    binding.add_symbol("sched_yield", 1)  # see `compiled.Library`
sched_yield = types.ExternalFunction("sched_yield", types.int32())


@compiled
def field(address: int, offset: int) -> int:
    """An int64 in memory."""
    return load_int((address + offset,))


@compiled
def next_task(sync: int, counter: int) -> int:
    """The number of the next task of a step: 0, 1, 2 …; each goes to one thread."""
    return fetch_add((sync + LINE * (1 + counter), 1))


@compiled_once
def wait_for_all(sync: int, threads: int) -> None:
    """Returns once all threads have come here.

    Each counts itself, for ever upwards, at `sync`; at sync + 8 is where the count began.
    Who waits longer than a few microseconds sleeps: on a busy machine the thread that it waits for
    may need its core.
    """
    if threads == 1:
        return
    began = field(sync, 8)
    arrived = fetch_add((sync, 1)) - began + 1
    target = began + (arrived + threads - 1) // threads * threads
    if began + arrived == target:
        if HAS_FUTEX:
            syscall(FUTEX, sync, FUTEX_WAKE, 1 << 30, 0)
        return
    spins = 0
    while True:
        now = load_shared((sync,))
        if now >= target:
            return
        spins += 1
        if spins < SPINS:
            pause((0,))
        elif HAS_FUTEX:
            syscall(FUTEX, sync, FUTEX_WAIT, now & 0xFFFFFFFF, 0)  # its low half is what it reads
        else:
            sched_yield()


@compiled_once
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
    """A tile of tokens times the blocks first … last − 1, float32 at y.

    Of int8, the first block is a panel's first.
    """
    block = first
    while block < last:
        step = 1
        if bits == 8:
            step = min(PANEL_BLOCKS, last - block)
        elif rows == 8 and block + WIDE <= last:
            step = WIDE
        start = block // PANEL_BLOCKS * SPAN_8 if bits == 8 else block * SPAN_4
        call = (
            rows if bits == 8 else rows * step,
            y + 4 * BLOCK * (block - first),
            y_stride,
            weights + start * spans,
            scales + 4 * BLOCK * block,
            tokens,
            token_scales,
            sums,
            spans,
            step,
        )
        if bits == 8:
            int8_tile(call)
        else:
            int4_tile(call)
        block += step


@compiled_once
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
            kind,
            source + g * inputs * (2 if kind == BFLOAT16 else 4),
            tokens + g * inputs * rows,
            4 * rows,
            token_scales + 4 * g * rows,
            sums + 4 * g * rows,
        )
        if bits == 8:
            quantize_group_8(call)
        else:
            quantize_group_4(call)


@compiled
def task_blocks(bits: int, spans: int) -> int:
    """Blocks of a task: about TASK_BYTES, in whole panels of int8, in pairs of int4."""
    if bits == 8:
        return max(1, TASK_BYTES // (spans * SPAN_8)) * PANEL_BLOCKS
    return max(1, TASK_BYTES // (spans * SPAN_4) // 2) * 2


@compiled_once
def project(
    sync: int,
    counter: int,
    matrix: int,
    rows: int,
    tiles: int,
    tokens: int,
    token_scales: int,
    sums: int,
    y: int,
    y_stride: int,
) -> None:
    """Tiles of tokens times a whole matrix, float32 at y; the threads share the blocks."""
    bits, blocks, spans = (
        field(matrix, BITS),
        field(matrix, BLOCKS),
        field(matrix, SPANS),
    )
    tile_groups = rows * spans * (1 if bits == 8 else 2)
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
                field(matrix, WEIGHTS),
                field(matrix, SCALES),
                first,
                min(blocks, first + step),
                tokens + tile * rows * spans * SPAN,
                token_scales + 4 * tile * tile_groups,
                sums + 4 * tile * tile_groups,
                spans,
            )


@compiled_once
def gate(
    sync: int,
    counter: int,
    gate_matrix: int,
    up_matrix: int,
    next_bits: int,
    rows: int,
    tiles: int,
    tokens: int,
    token_scales: int,
    sums: int,
    hidden: int,
    hidden_scales: int,
    hidden_sums: int,
    scratch: int,
) -> None:
    """gelu(gate(x)) · up(x), quantized for a matrix of `next_bits`; the threads share channels.

    hidden …: where that goes. scratch: SCRATCH bytes of this thread's own. The two matrices have
    one shape and equal bits.
    """
    bits, blocks, spans = (
        field(gate_matrix, BITS),
        field(gate_matrix, BLOCKS),
        field(gate_matrix, SPANS),
    )
    tile_groups = rows * spans * (1 if bits == 8 else 2)
    next_spans = (blocks + 3) // 4
    per_span = 1 if next_bits == 8 else 2
    while True:
        span = next_task(sync, counter)
        if span >= next_spans:
            return
        first, last = 4 * span, min(blocks, 4 * span + 4)
        for tile in range(tiles):
            for half in range(2):
                matrix = up_matrix if half else gate_matrix
                multiply_blocks(
                    bits,
                    rows,
                    scratch + half * SCRATCH // 2,
                    4 * SPAN,
                    field(matrix, WEIGHTS),
                    field(matrix, SCALES),
                    first,
                    last,
                    tokens + tile * rows * spans * SPAN,
                    token_scales + 4 * tile * tile_groups,
                    sums + 4 * tile * tile_groups,
                    spans,
                )
            for t in range(rows):
                y = scratch + 4 * SPAN * t
                for block in range(4):
                    at = y + 4 * BLOCK * block
                    if first + block < last:
                        gelu_mul((at, at + SCRATCH // 2))
                    else:
                        scale_16((at, np.float32(0.0)))
                group = (tile * next_spans + span) * per_span * rows + t
                quantize_groups(
                    FLOAT32,
                    next_bits,
                    rows,
                    y,
                    per_span,
                    hidden + (tile * next_spans + span) * rows * SPAN + 4 * t,
                    hidden_scales + 4 * group,
                    hidden_sums + 4 * group,
                )


@compiled_once
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
    tokens: int,
    token_scales: int,
    sums: int,
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
                tokens + tile * rows * spans * SPAN + 4 * t,
                token_scales + at,
                sums + at,
            )


@compiled_once
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
                store_16((kind, out + row * y_stride // 2 + 2 * BLOCK * i, at))


@entry
def linear(thread: int, threads: int, sync: int, job: int) -> None:
    """x · Wᵀ + bias.

    job: matrix, rows of a tile; x: kind, address, stride, count; tokens, their scales, sums; y in
    float32, bias or 0, out in x's kind.
    """
    matrix, rows, kind, source = field(job, 0), field(job, 8), field(job, 16), field(job, 24)
    stride, count, tokens, scales = field(job, 32), field(job, 40), field(job, 48), field(job, 56)
    sums, y, bias, out = field(job, 64), field(job, 72), field(job, 80), field(job, 88)
    bits, spans = field(matrix, BITS), field(matrix, SPANS)
    y_stride = 4 * BLOCK * field(matrix, BLOCKS)
    quantize_tokens(sync, 0, kind, bits, rows, source, stride, count, spans, tokens, scales, sums)
    wait_for_all(sync, threads)
    tiles = (count + rows - 1) // rows
    project(sync, 1, matrix, rows, tiles, tokens, scales, sums, y, y_stride)
    wait_for_all(sync, threads)
    if bias or kind == BFLOAT16:
        finish(sync, 2, kind, y, y_stride, bias, out, count)
        wait_for_all(sync, threads)


@entry
def geglu(thread: int, threads: int, sync: int, job: int) -> None:
    """down(gelu(gate(x)) · up(x)).

    job: as `linear`'s, but three matrices in a row, and no bias; then hidden, its scales, sums, and
    every thread's scratch.
    """
    gate_matrix, rows, kind, source = field(job, 0), field(job, 8), field(job, 16), field(job, 24)
    stride, count, tokens, scales = field(job, 32), field(job, 40), field(job, 48), field(job, 56)
    sums, y, out = field(job, 64), field(job, 72), field(job, 88)
    hidden, hidden_scales, hidden_sums = field(job, 96), field(job, 104), field(job, 112)
    scratch = field(job, 120) + thread * SCRATCH
    up_matrix, down = gate_matrix + FIELDS, gate_matrix + 2 * FIELDS
    bits, spans = field(gate_matrix, BITS), field(gate_matrix, SPANS)
    y_stride = 4 * BLOCK * field(down, BLOCKS)
    quantize_tokens(sync, 0, kind, bits, rows, source, stride, count, spans, tokens, scales, sums)
    wait_for_all(sync, threads)
    tiles = (count + rows - 1) // rows
    gate(
        sync,
        1,
        gate_matrix,
        up_matrix,
        field(down, BITS),
        rows,
        tiles,
        tokens,
        scales,
        sums,
        hidden,
        hidden_scales,
        hidden_sums,
        scratch,
    )
    wait_for_all(sync, threads)
    project(sync, 2, down, rows, tiles, hidden, hidden_scales, hidden_sums, y, y_stride)
    wait_for_all(sync, threads)
    if kind == BFLOAT16:
        finish(sync, 3, kind, y, y_stride, 0, out, count)
        wait_for_all(sync, threads)


@compiled_once
def pack_block(
    kind: int,
    bits: int,
    source: int,
    stride: int,
    count: int,
    spans: int,
    target: int,
    scales: int,
    totals: int,
) -> None:
    """Quantizes up to 16 rows of weights, `stride` bytes apart, into a block."""
    width = 2 if kind == BFLOAT16 else 4
    for c in range(count):
        row = source + c * stride
        if bits == 8:
            pack_row_8((kind, row, target + 4 * c, scales + 4 * c, totals + 4 * c, spans))
            continue
        for g in range(2 * spans):
            base = target + g // 2 * SPAN_4
            codes = base + 4 * BLOCK + g % 2 * 256 + 4 * c
            pack_group_4((kind, row + g * GROUP_4 * width, codes, base + g % 2 * 2 * BLOCK + 2 * c))


@entry
def pack(thread: int, threads: int, sync: int, job: int) -> None:
    """Quantizes rows of weights into a matrix; the threads share blocks.

    job: matrix; kind, address, stride and count of the rows.
    """
    matrix, kind, source = field(job, 0), field(job, 8), field(job, 16)
    stride, count = field(job, 24), field(job, 32)
    bits, blocks, spans = field(matrix, BITS), field(matrix, BLOCKS), field(matrix, SPANS)
    weights = field(matrix, WEIGHTS)
    totals = weights + (blocks + PANEL_BLOCKS - 1) // PANEL_BLOCKS * spans * SPAN_8
    while True:
        block = next_task(sync, 0)
        if block >= blocks:
            break
        if bits == 8:
            panel, place = block // PANEL_BLOCKS, block % PANEL_BLOCKS
            target = weights + panel * spans * SPAN_8 + 4 * BLOCK * place
        else:
            target = weights + block * spans * SPAN_4
        pack_block(
            kind,
            bits,
            source + block * BLOCK * stride,
            stride,
            min(BLOCK, count - block * BLOCK),
            spans,
            target,
            field(matrix, SCALES) + 4 * BLOCK * block,
            totals + 4 * BLOCK * block,
        )
    wait_for_all(sync, threads)
