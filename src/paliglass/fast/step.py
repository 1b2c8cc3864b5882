"""A token's whole way through the decoder as one compiled function, `decode`.

Every thread keeps the residual stream of all tokens for itself, with the norms that follow from it:
that costs less than waiting for who else computes them. What matrices and attention give is shared.
"""

from __future__ import annotations

import math

import numpy as np

from paliglass.fast.instructions import (
    BFLOAT16,
    FLOAT32,
    add_16,
    cap_16,
    exp_below,
    inner,
    load_byte,
    load_float,
    load_half,
    mix_1,
    mix_4,
    normalize_16,
    rotate_8,
    scale_16,
    store_16,
    store_float,
)
from paliglass.fast.kernels import (
    BITS,
    BLOCKS,
    FIELDS,
    PANEL_BLOCKS,
    SCALES,
    SPANS,
    WEIGHTS,
    compiled_once,
    entry,
    field,
    gate,
    multiply_blocks,
    next_task,
    project,
    quantize_groups,
    task_blocks,
    wait_for_all,
)
from paliglass.fast.layout import BLOCK, CODES, PANEL, SCRATCH, SPAN, SPAN_4, SPAN_8

# A layer's matrices in their order; after the last layer's comes the table.
Q, K, V, O, GATE, UP, DOWN = (i * FIELDS for i in range(7))  # noqa: E741
LAYER_MATRICES = 7
# The addresses of a layer's gains, 0 where there is no such norm; then the last norm's.
BEFORE_ATTENTION, AFTER_ATTENTION, BEFORE_MLP, AFTER_MLP = range(0, 32, 8)
LAYER_NORMS = 4
COUNTERS = 8  # of a layer
# float32 numbers.
FACTORS = ("epsilon", "query_scale", "attention_cap", "embedding_scale", "final_cap")
EPSILON, QUERY_SCALE, EMBEDDING_SCALE, FINAL_CAP = 0, 4, 12, 16
# What a job holds, int64 each: whole numbers, then addresses.
JOB = (
    "width",
    "heads",
    "key_heads",
    "head_dim",
    "layers",
    "slots",  # of a row of the cache
    "kind",  # of the cache's numbers
    "count",  # of tokens
    "rows",  # of their tile
    "words",  # panels of 64 words whose logits are wanted
    "factors",
    "matrices",
    "norms",
    "caches",  # of each layer keys and values
    "ids",  # count; then each token's row of the cache, and its slot: the position − 1
    "panels",  # the wanted words'
    "cos",
    "sin",
    "qkv",  # count × (heads + 2 key_heads) × head_dim
    "attended",  # count × heads · head_dim, in full spans
    "summed",  # rows × width, in full blocks
    "hidden",  # the MLP's middle, as tokens, their scales, their sums
    "hidden_scales",
    "hidden_sums",
    "own",  # the first thread's own memory
    "own_bytes",
    "out",  # count × width, after the last norm
    "logits",  # rows × words · 64
)
WIDTH, HEADS, KEY_HEADS, HEAD_DIM, LAYERS, SLOTS, KIND, COUNT, ROWS, WORDS = range(0, 80, 8)
FACTORS_AT, MATRICES, NORMS, CACHES, IDS, WORD_PANELS, COS, SIN = range(80, 144, 8)
QKV, ATTENDED, SUMMED, HIDDEN, HIDDEN_SCALES, HIDDEN_SUMS = range(144, 192, 8)
OWN, OWN_BYTES, OUT, LOGITS = range(192, 224, 8)
assert 8 * len(JOB) == LOGITS + 8
LOWEST = np.float32(-1e30)


@compiled_once
def normalize(x: int, gain: int, width: int, factors: int, out: int) -> None:
    """RMSNorm of one token: x / √(mean(x²) + ε) · gain."""
    mean = inner((FLOAT32, x, x, width // 16)) / np.float32(width)
    factor = np.float32(1.0) / np.float32(math.sqrt(mean + load_float((factors + EPSILON,))))
    for i in range(0, 4 * width, 64):
        normalize_16((out + i, x + i, gain + i, factor))


@compiled_once
def quantize_rows(
    source: int,
    stride: int,
    count: int,
    matrix: int,
    rows: int,
    tokens: int,
    scales: int,
    sums: int,
) -> None:
    """Some tokens, float32, as a tile for a matrix."""
    bits = field(matrix, BITS)
    groups = field(matrix, SPANS) * (1 if bits == 8 else 2)
    for t in range(count):
        x = source + t * stride
        at = 4 * t
        quantize_groups(FLOAT32, bits, rows, x, groups, tokens + at, scales + at, sums + at)


@compiled_once
def normalize_rows(
    stream: int, stride: int, count: int, gain: int, width: int, factors: int, out: int
) -> None:
    """RMSNorm of some tokens."""
    for t in range(count):
        normalize(stream + t * stride, gain, width, factors, out + t * stride)


@compiled_once
def add_rows(
    stream: int,
    stride: int,
    count: int,
    summed: int,
    summed_stride: int,
    gain: int,
    width: int,
    factors: int,
    room: int,
) -> None:
    """stream + y, or + norm(y) where there is a gain."""
    for t in range(count):
        y = summed + t * summed_stride
        if gain:
            normalize(y, gain, width, factors, room)
            y = room
        for i in range(0, 4 * width, 64):
            add_16((stream + t * stride + i, y + i))


@compiled_once
def embed(table: int, token: int, width: int, factors: int, out: int) -> None:
    """A row of the packed table, times √D."""
    factor = load_float((factors + EMBEDDING_SCALE,))
    bits, spans, start = field(table, BITS), field(table, SPANS), field(table, WEIGHTS)
    for k in range(width):
        if bits == 8:
            scale = load_float((field(table, SCALES) + 4 * token,))
            panel = start + (token // PANEL * spans + k // SPAN) * SPAN_8
            at = panel + (k % SPAN // 4 * PANEL + token % PANEL) * 4 + k % 4
            value = np.float32((load_byte((at,)) ^ 128) - 128)
        else:
            channel = token % BLOCK
            span = start + (token // BLOCK * spans + k // SPAN) * SPAN_4
            scale = load_half((span + k % SPAN // 32 * 2 * BLOCK + 2 * channel,))
            at = span + 4 * BLOCK + k % SPAN // 8 * 64 + 4 * channel + k % 4
            byte = load_byte((at,)) >> (4 * (k % 8 // 4))
            value = np.float32(CODES[byte & 15])
        store_float((out + 4 * k, value * scale * factor))


@compiled_once
def rotate(x: int, head_dim: int, position: int, cos: int, sin: int) -> None:
    """RoPE of one head, in place; channel i is paired with i + head_dim / 2."""
    half = 2 * head_dim  # bytes
    for i in range(0, half, 32):
        at = position * half + i
        rotate_8((x + i, x + half + i, cos + at, sin + at))


@compiled_once
def store(kind: int, source: int, count: int, target: int) -> None:
    """float32 numbers into the cache."""
    size = 2 if kind == BFLOAT16 else 4
    for i in range(0, count, 16):
        store_16((kind, target + size * i, source + 4 * i))


@compiled_once
def attend(
    kind: int,
    query: int,
    keys: int,
    values: int,
    count: int,
    head_dim: int,
    factors: int,
    scores: int,
    out: int,
) -> None:
    """softmax(cap(q · kᵀ · scale)) · v of one head over `count` slots.

    scores: room for as many float32 as there are slots, and 16 more.
    """
    scale, cap = load_float((factors + QUERY_SCALE,)), load_float((factors + QUERY_SCALE + 4,))
    size = head_dim * (2 if kind == BFLOAT16 else 4)
    for s in range(count):
        score = inner((kind, query, keys + s * size, head_dim // 16))
        store_float((scores + 4 * s, score * scale))
    end = scores + (count + 15) // 16 * 64
    if cap > np.float32(0.0):
        for at in range(scores, end, 64):
            cap_16((at, cap))
    highest = LOWEST
    for s in range(count):
        highest = max(highest, load_float((scores + 4 * s,)))
    for at in range(scores + 4 * count, end, 4):
        store_float((at, LOWEST))
    total = np.float32(0.0)
    for at in range(scores, end, 64):
        total += exp_below((at, highest))
    for at in range(scores, end, 64):
        scale_16((at, np.float32(1.0) / total))
    d = 0
    while d < head_dim:
        some = kind, out + 4 * d, scores, count, values + d * size // head_dim, size
        if d + 64 <= head_dim:
            mix_4(some)
            d += 64
        else:
            mix_1(some)
            d += 16


@compiled_once
def rotate_and_store(sync: int, counter: int, job: int, layer: int) -> None:
    """Turns queries and keys by their positions; keys and values go into the cache."""
    heads, key_heads, head_dim = field(job, HEADS), field(job, KEY_HEADS), field(job, HEAD_DIM)
    count, kind, slots = field(job, COUNT), field(job, KIND), field(job, SLOTS)
    size = head_dim * (2 if kind == BFLOAT16 else 4)
    caches = field(job, CACHES) + 16 * layer
    turned = heads + key_heads
    while True:
        task = next_task(sync, counter)
        if task >= count * turned:
            return
        t, head = task // turned, task % turned
        row, slot = field(job, IDS) + 8 * (count + t), field(job, IDS) + 8 * (2 * count + t)
        x = field(job, QKV) + 4 * (t * (turned + key_heads) + head) * head_dim
        rotate(x, head_dim, field(slot, 0) + 1, field(job, COS), field(job, SIN))
        if head >= heads:
            at = ((field(row, 0) * key_heads + head - heads) * slots + field(slot, 0)) * size
            store(kind, x, head_dim, field(caches, 0) + at)
            store(kind, x + 4 * key_heads * head_dim, head_dim, field(caches, 8) + at)


@compiled_once
def attend_all(sync: int, counter: int, job: int, layer: int, scores: int) -> None:
    """Every head of every token; the threads share them."""
    heads, key_heads, head_dim = field(job, HEADS), field(job, KEY_HEADS), field(job, HEAD_DIM)
    count, kind, slots = field(job, COUNT), field(job, KIND), field(job, SLOTS)
    size = head_dim * (2 if kind == BFLOAT16 else 4)
    caches = field(job, CACHES) + 16 * layer
    stride = (heads * head_dim + SPAN - 1) // SPAN * SPAN
    while True:
        task = next_task(sync, counter)
        if task >= count * heads:
            return
        t, head = task // heads, task % heads
        row = field(field(job, IDS) + 8 * (count + t), 0)
        seen = field(field(job, IDS) + 8 * (2 * count + t), 0) + 1
        start = (row * key_heads + head * key_heads // heads) * slots * size
        attend(
            kind,
            field(job, QKV) + 4 * (t * (heads + 2 * key_heads) + head) * head_dim,
            field(caches, 0) + start,
            field(caches, 8) + start,
            seen if seen < slots else 1,  # the spare slot is padding's: whatever comes out
            head_dim,
            field(job, FACTORS_AT),
            scores,
            field(job, ATTENDED) + 4 * (t * stride + head * head_dim),
        )


@entry
def decode(thread: int, threads: int, sync: int, job: int) -> None:
    """One to eight tokens from their ids to what comes out after the last norm; job: see `JOB`."""
    width, heads, key_heads = field(job, WIDTH), field(job, HEADS), field(job, KEY_HEADS)
    head_dim, count, rows = field(job, HEAD_DIM), field(job, COUNT), field(job, ROWS)
    factors, layers = field(job, FACTORS_AT), field(job, LAYERS)
    stride = 4 * ((width + SPAN - 1) // SPAN * SPAN)
    attended_stride = 4 * ((heads * head_dim + SPAN - 1) // SPAN * SPAN)
    summed, summed_stride = field(job, SUMMED), 4 * width
    qkv_stride = 4 * (heads + 2 * key_heads) * head_dim
    # This thread's own: stream, norms, integers, scales, sums, scratch, scores.
    stream = field(job, OWN) + thread * field(job, OWN_BYTES)
    normed = stream + rows * stride
    tokens = normed + rows * stride
    scales = tokens + rows * max(stride, attended_stride) // 4
    sums = scales + rows * max(stride, attended_stride) // 32
    scratch = sums + rows * max(stride, attended_stride) // 32
    scores = scratch + SCRATCH
    matrices = field(job, MATRICES)
    table = matrices + layers * LAYER_MATRICES * FIELDS
    for t in range(count):
        embed(table, field(field(job, IDS) + 8 * t, 0), width, factors, stream + t * stride)
    for layer in range(layers):
        matrix = matrices + layer * LAYER_MATRICES * FIELDS
        gains = field(job, NORMS) + layer * LAYER_NORMS * 8
        counter = layer * COUNTERS
        gain = field(gains, BEFORE_ATTENTION)
        normalize_rows(stream, stride, count, gain, width, factors, normed)
        quantize_rows(normed, stride, count, matrix + Q, rows, tokens, scales, sums)
        y = field(job, QKV)
        for i in range(3):
            project(
                sync,
                counter + i,
                matrix + i * FIELDS,
                rows,
                1,
                tokens,
                scales,
                sums,
                y,
                qkv_stride,
            )
            y += 4 * BLOCK * field(matrix + i * FIELDS, BLOCKS)
        wait_for_all(sync, threads)
        rotate_and_store(sync, counter + 3, job, layer)
        wait_for_all(sync, threads)
        attend_all(sync, counter + 4, job, layer, scores)
        wait_for_all(sync, threads)
        y = field(job, ATTENDED)
        quantize_rows(y, attended_stride, count, matrix + O, rows, tokens, scales, sums)
        project(
            sync,
            counter + 5,
            matrix + O,
            rows,
            1,
            tokens,
            scales,
            sums,
            summed,
            summed_stride,
        )
        wait_for_all(sync, threads)
        gain = field(gains, AFTER_ATTENTION)
        add_rows(stream, stride, count, summed, summed_stride, gain, width, factors, normed)
        gain = field(gains, BEFORE_MLP)
        normalize_rows(stream, stride, count, gain, width, factors, normed)
        quantize_rows(normed, stride, count, matrix + GATE, rows, tokens, scales, sums)
        gate(
            sync,
            counter + 6,
            matrix + GATE,
            matrix + UP,
            field(matrix + DOWN, BITS),
            rows,
            1,
            tokens,
            scales,
            sums,
            field(job, HIDDEN),
            field(job, HIDDEN_SCALES),
            field(job, HIDDEN_SUMS),
            scratch,
        )
        wait_for_all(sync, threads)
        project(
            sync,
            counter + 7,
            matrix + DOWN,
            rows,
            1,
            field(job, HIDDEN),
            field(job, HIDDEN_SCALES),
            field(job, HIDDEN_SUMS),
            summed,
            summed_stride,
        )
        wait_for_all(sync, threads)
        gain = field(gains, AFTER_MLP)
        add_rows(stream, stride, count, summed, summed_stride, gain, width, factors, normed)
    gain = field(field(job, NORMS) + layers * LAYER_NORMS * 8, 0)
    normalize_rows(stream, stride, count, gain, width, factors, normed)
    if thread == 0:
        for t in range(count):
            for i in range(0, 4 * width, 64):
                store_16((FLOAT32, field(job, OUT) + 4 * width * t + i, normed + stride * t + i))
    wait_for_all(sync, threads)


@entry
def score(thread: int, threads: int, sync: int, job: int) -> None:
    """The wanted words' logits of tokens that `decode` has left at `out`; job: see `JOB`.

    The threads share the panels.
    """
    width, count, rows = field(job, WIDTH), field(job, COUNT), field(job, ROWS)
    table = field(job, MATRICES) + field(job, LAYERS) * LAYER_MATRICES * FIELDS
    bits, spans, words = field(table, BITS), field(table, SPANS), field(job, WORDS)
    stride = 4 * ((width + SPAN - 1) // SPAN * SPAN)
    attended_stride = 4 * ((field(job, HEADS) * field(job, HEAD_DIM) + SPAN - 1) // SPAN * SPAN)
    # All where `decode` has it: what fills up `normed` to full spans has to stay 0.
    padded = field(job, OWN) + thread * field(job, OWN_BYTES) + rows * stride
    tokens = padded + rows * stride
    scales = tokens + rows * max(stride, attended_stride) // 4
    sums = scales + rows * max(stride, attended_stride) // 32
    for t in range(count):
        for i in range(0, 4 * width, 64):
            store_16((FLOAT32, padded + stride * t + i, field(job, OUT) + 4 * width * t + i))
    quantize_rows(padded, stride, count, table, rows, tokens, scales, sums)
    y_stride = 4 * PANEL * words
    cap = load_float((field(job, FACTORS_AT) + FINAL_CAP,))
    step = max(1, task_blocks(bits, spans) // PANEL_BLOCKS)
    while True:
        first = next_task(sync, 0) * step
        if first >= words:
            break
        for i in range(first, min(first + step, words)):
            y = field(job, LOGITS) + 4 * PANEL * i
            block = field(field(job, WORD_PANELS) + 8 * i, 0) * PANEL_BLOCKS
            multiply_blocks(
                bits,
                rows,
                y,
                y_stride,
                field(table, WEIGHTS),
                field(table, SCALES),
                block,
                min(field(table, BLOCKS), block + PANEL_BLOCKS),
                tokens,
                scales,
                sums,
                spans,
            )
            if cap > np.float32(0.0):
                for t in range(count):
                    for at in range(y + y_stride * t, y + y_stride * t + 4 * PANEL, 64):
                        cap_16((at, cap))
    wait_for_all(sync, threads)
