"""A token's whole way through the decoder as one compiled function; see `decode`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from paliglass.fast.instructions import (
    BFLOAT16,
    FLOAT32,
    add_16,
    cap_16,
    exp_below,
    inner,
    inner_bf16,
    load_byte,
    load_float,
    load_half,
    mix_1,
    mix_1_bf16,
    mix_4,
    mix_4_bf16,
    normalize_16,
    rotate_8,
    scale_16,
    store_float,
    to_bf16,
)
from paliglass.fast.kernels import (
    BITS,
    BLOCKS,
    SCALES,
    SPAN_4,
    SPAN_8,
    SPANS,
    WEIGHTS,
    compiled,
    gate,
    multiply_blocks,
    next_task,
    project,
    quantize_groups,
    task_blocks,
    wait_for_all,
)
from paliglass.fast.layout import BLOCK, CODES, SPAN

# A layer's matrices, and after the last layer's the table.
Q, K, V, O, GATE, UP, DOWN, MATRICES = range(8)
# A layer's norms: their gains' addresses, 0 where there is none.
BEFORE_ATTENTION, AFTER_ATTENTION, BEFORE_MLP, AFTER_MLP, NORMS = range(5)
COUNTERS = 8  # of a layer
# `shape`: whole numbers that stay the same.
WIDTH, HEADS, KEY_HEADS, HEAD_DIM, LAYERS, HIDDEN, SHAPE = range(7)
# `factors`: float32.
EPSILON, QUERY_SCALE, ATTENTION_CAP, EMBEDDING_SCALE, FINAL_CAP, FACTORS = range(6)
# `room`: addresses of memory that all threads share, and of that of the first, bytes of each.
QKV, ATTENDED, SUMMED, NEXT, NEXT_SCALES, NEXT_SUMS, OWN, OWN_BYTES, COS, SIN, ROOM = range(11)
LOWEST = np.float32(-1e30)


@compiled
def own_room(room: Any, shape: Any, thread: int, rows: int, most: int) -> Any:
    """A thread's own memory: residual stream, norm, integers, their scales and sums, gate, scores.

    most: the most inputs of a matrix that a thread quantizes for itself.
    """
    start = room[OWN] + thread * room[OWN_BYTES]
    width = (shape[WIDTH] + SPAN - 1) // SPAN * SPAN
    stream = start
    normed = stream + 4 * rows * width
    integers = normed + 4 * width
    scales = integers + rows * most
    sums = scales + rows * most // 8
    scratch = sums + rows * most // 8
    scores = scratch + 4 * SPAN * 16
    return stream, normed, (integers, scales, sums), scratch, scores


@compiled
def square_sum(x: int, count: int) -> float:
    return inner((x, x, count // 16))


@compiled
def normalize(x: int, gain: int, width: int, epsilon: float, out: int) -> None:
    """RMSNorm of one token: x / √(mean(x²) + ε) · gain."""
    mean = inner((x, x, width // 16)) / np.float32(width)
    factor = np.float32(1.0) / np.float32(math.sqrt(mean + epsilon))
    for i in range(0, 4 * width, 64):
        normalize_16((out + i, x + i, gain + i, factor))


@compiled
def quantize_normed(
    own: Any, width: int, rows: int, count: int, gain: int, epsilon: float, matrix: Any
) -> None:
    """The norm of every token of the stream, quantized for a matrix."""
    stream, normed, tokens, _, _ = own
    padded = (width + SPAN - 1) // SPAN * SPAN
    groups = matrix[SPANS] * (1 if matrix[BITS] == 8 else 2)
    for t in range(count):
        normalize(stream + 4 * padded * t, gain, width, epsilon, normed)
        quantize_groups(
            FLOAT32,
            matrix[BITS],
            rows,
            normed,
            groups,
            tokens[0] + 4 * t,
            tokens[1] + 4 * t,
            tokens[2] + 4 * t,
        )


@compiled
def add_to_stream(own: Any, width: int, count: int, summed: int, gain: int, epsilon: float) -> None:
    """stream + y, or + norm(y) where there is a gain; y: rows of `summed`."""
    stream, normed, _, _, _ = own
    padded = (width + SPAN - 1) // SPAN * SPAN
    stride = (width + BLOCK - 1) // BLOCK * BLOCK
    for t in range(count):
        y = summed + 4 * stride * t
        if gain:
            normalize(y, gain, width, epsilon, normed)
            y = normed
        for i in range(0, 4 * width, 64):
            add_16((stream + 4 * padded * t + i, y + i))


@compiled
def embed(table: Any, token: int, width: int, factor: float, out: int) -> None:
    """A row of the packed table, times a factor."""
    spans = table[SPANS]
    start = table[WEIGHTS] + token // BLOCK * spans * (SPAN_8 if table[BITS] == 8 else SPAN_4)
    channel = token % BLOCK
    if table[BITS] == 8:
        scale = load_float((table[SCALES] + 4 * token,)) * factor
        for k in range(width):
            byte = load_byte((start + k // 4 * 64 + 4 * channel + k % 4,))
            store_float((out + 4 * k, np.float32(byte - 128) * scale))
    else:
        for k in range(width):
            span = start + k // SPAN * SPAN_4
            scale = load_half((span + k % SPAN // 32 * 2 * BLOCK + 2 * channel,)) * factor
            at = span + 4 * BLOCK + k % SPAN // 8 * 64 + 4 * channel + k % 4
            byte = load_byte((at,)) >> (4 * (k % 8 // 4))
            store_float((out + 4 * k, np.float32(CODES[byte & 15]) * scale))


@compiled
def rotate(x: int, head_dim: int, position: int, room: Any) -> None:
    """RoPE of one head, in place; halves are paired."""
    half = 2 * head_dim  # bytes
    for i in range(0, half, 32):
        at = position * half + i
        rotate_8((x + i, x + half + i, room[COS] + at, room[SIN] + at))


@compiled
def store(kind: int, source: int, count: int, target: int) -> None:
    """float32 numbers into the cache."""
    for i in range(count // 16):
        if kind == BFLOAT16:
            to_bf16((target + 32 * i, source + 64 * i))
        else:
            normalize_copy(source + 64 * i, target + 64 * i)


@compiled
def normalize_copy(source: int, target: int) -> None:
    for i in range(0, 64, 4):
        store_float((target + i, load_float((source + i,))))


@compiled
def attend(
    kind: int,
    query: int,
    keys: int,
    values: int,
    count: int,
    head_dim: int,
    scale: float,
    cap: float,
    scores: int,
    out: int,
) -> None:
    """softmax(cap(q · kᵀ · scale)) · v of one head over `count` slots."""
    size = head_dim * (2 if kind == BFLOAT16 else 4)
    vectors = head_dim // 16
    padded = (count + 15) // 16 * 16
    for s in range(count):
        if kind == BFLOAT16:
            score = inner_bf16((query, keys + s * size, vectors)) * scale
        else:
            score = inner((query, keys + s * size, vectors)) * scale
        store_float((scores + 4 * s, score))
    for s in range(count, padded):
        store_float((scores + 4 * s, LOWEST))
    if cap > np.float32(0.0):
        for i in range(0, 4 * padded, 64):
            cap_16((scores + i, cap))
        for s in range(count, padded):
            store_float((scores + 4 * s, LOWEST))
    highest = LOWEST
    for s in range(count):
        highest = max(highest, load_float((scores + 4 * s,)))
    total = np.float32(0.0)
    for i in range(0, 4 * padded, 64):
        total += exp_below((scores + i, highest))
    inverse = np.float32(1.0) / total
    for i in range(0, 4 * padded, 64):
        scale_16((scores + i, inverse))
    d = 0
    while d < head_dim:
        if d + 64 <= head_dim:
            if kind == BFLOAT16:
                mix_4_bf16((out + 4 * d, scores, count, values + 2 * d, size))
            else:
                mix_4((out + 4 * d, scores, count, values + 4 * d, size))
            d += 64
        else:
            if kind == BFLOAT16:
                mix_1_bf16((out + 4 * d, scores, count, values + 2 * d, size))
            else:
                mix_1((out + 4 * d, scores, count, values + 4 * d, size))
            d += 16


@compiled
def decode(
    thread: int,
    threads: int,
    sync: int,
    shape: Any,
    factors: Any,
    matrices: Any,
    norms: Any,
    room: Any,
    caches: Any,
    cache_shape: Any,
    tokens: Any,
    words: Any,
    hidden: int,
    logits: int,
) -> None:
    """One to eight tokens from their ids to their logits.

    Args:
        shape, factors, matrices, norms, room: see the names above.
        caches: layers × 2, the addresses of keys and values. cache_shape: slots of a row, its kind.
        tokens: 3 × M: id, row of the cache and slot of each; position = slot + 1.
        words: the blocks of 16 words whose logits are wanted.
        hidden: float32 M × width, what comes out of the last norm.
        logits: float32, a tile's rows × 16 words of each block.
    """
    count = tokens.shape[1]
    rows = 1 if count == 1 else 2 if count == 2 else 4 if count <= 4 else 8
    width, heads, key_heads, head_dim = (
        shape[WIDTH],
        shape[HEADS],
        shape[KEY_HEADS],
        shape[HEAD_DIM],
    )
    layers, epsilon = shape[LAYERS], factors[EPSILON]
    padded = (width + SPAN - 1) // SPAN * SPAN
    attended_width = (heads * head_dim + SPAN - 1) // SPAN * SPAN
    own = own_room(room, shape, thread, rows, max(padded, attended_width))
    stream, normed, private, scratch, scores = own
    slots, kind = cache_shape[0], cache_shape[1]
    size = 2 if kind == BFLOAT16 else 4
    qkv_width = (heads + 2 * key_heads) * head_dim
    key_start, value_start = heads * head_dim, (heads + key_heads) * head_dim
    table = matrices[layers * MATRICES]
    following = room[NEXT], room[NEXT_SCALES], room[NEXT_SUMS]
    for t in range(count):
        embed(table, tokens[0, t], width, factors[EMBEDDING_SCALE], stream + 4 * padded * t)
    for layer in range(layers):
        m, counter = layer * MATRICES, layer * COUNTERS
        # Queries, keys and values.
        gain = norms[layer, BEFORE_ATTENTION]
        quantize_normed(own, width, rows, count, gain, epsilon, matrices[m + Q])
        for i, start in enumerate((0, key_start, value_start)):
            y = room[QKV] + 4 * start
            project(sync, counter + i, matrices[m + i], rows, 1, private, y, 4 * qkv_width)
        wait_for_all(sync, threads)
        # Rotary positions; keys and values into the cache.
        while True:
            task = next_task(sync, counter + 3)
            if task >= count * (heads + key_heads):
                break
            t, head = task // (heads + key_heads), task % (heads + key_heads)
            x = room[QKV] + 4 * (t * qkv_width + head * head_dim)
            rotate(x, head_dim, tokens[2, t] + 1, room)
            if head >= heads:
                at = (tokens[1, t] * key_heads + head - heads) * slots + tokens[2, t]
                store(kind, x, head_dim, caches[layer, 0] + at * head_dim * size)
                x += 4 * key_heads * head_dim
                store(kind, x, head_dim, caches[layer, 1] + at * head_dim * size)
        wait_for_all(sync, threads)
        while True:
            task = next_task(sync, counter + 4)
            if task >= count * heads:
                break
            t, head = task // heads, task % heads
            start = (tokens[1, t] * key_heads + head * key_heads // heads) * slots
            seen = tokens[2, t] + 1 if tokens[2, t] + 1 < slots else 1  # padding: anything
            attend(
                kind,
                room[QKV] + 4 * (t * qkv_width + head * head_dim),
                caches[layer, 0] + start * head_dim * size,
                caches[layer, 1] + start * head_dim * size,
                seen,
                head_dim,
                factors[QUERY_SCALE],
                factors[ATTENTION_CAP],
                scores,
                room[ATTENDED] + 4 * (t * attended_width + head * head_dim),
            )
        wait_for_all(sync, threads)
        matrix = matrices[m + O]
        for t in range(count):
            quantize_groups(
                FLOAT32,
                matrix[BITS],
                rows,
                room[ATTENDED] + 4 * t * attended_width,
                matrix[SPANS] * (1 if matrix[BITS] == 8 else 2),
                private[0] + 4 * t,
                private[1] + 4 * t,
                private[2] + 4 * t,
            )
        y_stride = 4 * BLOCK * matrix[BLOCKS]
        project(sync, counter + 5, matrix, rows, 1, private, room[SUMMED], y_stride)
        wait_for_all(sync, threads)
        # The MLP.
        after = norms[layer, AFTER_ATTENTION]
        add_to_stream(own, width, count, room[SUMMED], after, epsilon)
        gain = norms[layer, BEFORE_MLP]
        quantize_normed(own, width, rows, count, gain, epsilon, matrices[m + GATE])
        down = matrices[m + DOWN]
        gate(
            sync,
            counter + 6,
            matrices[m + GATE],
            matrices[m + UP],
            down[BITS],
            rows,
            1,
            private,
            following,
            scratch,
        )
        wait_for_all(sync, threads)
        project(sync, counter + 7, down, rows, 1, following, room[SUMMED], y_stride)
        wait_for_all(sync, threads)
        add_to_stream(own, width, count, room[SUMMED], norms[layer, AFTER_MLP], epsilon)
    if thread == 0:
        for t in range(count):
            normalize(stream + 4 * padded * t, norms[layers, 0], width, epsilon, normed)
            for i in range(0, 4 * width, 64):
                normalize_copy(normed + i, hidden + 4 * width * t + i)
    quantize_normed(own, width, rows, count, norms[layers, 0], epsilon, table)
    step = task_blocks(table[BITS], table[SPANS])
    while True:
        first = next_task(sync, layers * COUNTERS) * step
        if first >= len(words):
            break
        for i in range(first, min(first + step, len(words))):
            y = logits + 4 * BLOCK * i
            multiply_blocks(
                table[BITS],
                rows,
                y,
                4 * BLOCK * len(words),
                table[WEIGHTS],
                table[SCALES],
                words[i],
                words[i] + 1,
                private[0],
                private[1],
                private[2],
                table[SPANS],
            )
            if factors[FINAL_CAP] > np.float32(0.0):
                for t in range(count):
                    cap_16((y + 4 * BLOCK * len(words) * t, factors[FINAL_CAP]))
    wait_for_all(sync, threads)
