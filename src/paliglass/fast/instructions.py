"""What numba lacks: vectors, the processor's dot products of bytes, atomic counters.

Each function here writes LLVM IR into the compiled function that calls it. All arguments are
integers: addresses, strides and counts. Plain loops do not reach these instructions: LLVM does not
find a dot product of bytes by itself.

A dot product of bytes multiplies four unsigned bytes by four signed ones and adds the sum to an
int32, in as many lanes as `processor.INSTRUCTION` has. A lane is an output channel: its four
weights are in the packed matrix, the token's four numbers are the same for all lanes. Where weights
have to be unsigned they are taken 128 above their value, and the sums of `quantize_group` take that
off again.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from paliglass.fast.layout import BLOCK, CODES, GROUP, PANEL, SPAN, SPAN_4, SPAN_8
from paliglass.fast.processor import INSTRUCTION

Builder = Any  # llvmlite has no types
Value = Any

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
LANES = 16  # of vectors of float32, wherever lanes are not the processor's own
FLOAT32, BFLOAT16 = 0, 1  # how numbers are stored that are computed in float32


def _vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _constant(element: Any, lanes: int, value: float | int) -> Value:
    return ir.Constant(_vector(element, lanes), [value] * lanes)


def _call(b: Builder, name: str, result: Any, *arguments: Value) -> Value:
    function = b.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(b.module, kind, name)
    return b.call(function, arguments)


def _suffix(vector: Any) -> str:
    element = vector.element
    kind = f"i{element.width}" if isinstance(element, ir.IntType) else "f32"
    return f"v{vector.count}{kind}"


def _unary(b: Builder, name: str, x: Value) -> Value:
    return _call(b, f"llvm.{name}.{_suffix(x.type)}", x.type, x)


def _binary(b: Builder, name: str, x: Value, y: Value) -> Value:
    return _call(b, f"llvm.{name}.{_suffix(x.type)}", x.type, x, y)


def _fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    return _call(b, f"llvm.fma.{_suffix(x.type)}", x.type, x, y, z)


def _add(b: Builder, address: Value, offset: int) -> Value:
    return b.add(address, I64(offset)) if offset else address


def _load(b: Builder, kind: Any, address: Value, align: int = 1) -> Value:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=align)


def _store(b: Builder, value: Value, address: Value, align: int = 1) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=align)


def _splat(b: Builder, value: Value, lanes: int) -> Value:
    kind = _vector(value.type, lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), _constant(I32, lanes, 0))


def _shuffle(b: Builder, x: Value, places: Sequence[int]) -> Value:
    mask = ir.Constant(_vector(I32, len(places)), list(places))
    return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), mask)


def _sum(b: Builder, x: Value) -> Value:
    """The sum of a vector's numbers, halves first: the same on every processor."""
    while x.type.count > 1:
        half = x.type.count // 2
        low, high = _shuffle(b, x, range(half)), _shuffle(b, x, range(half, 2 * half))
        x = b.add(low, high) if isinstance(x.type.element, ir.IntType) else b.fadd(low, high)
    return b.extract_element(x, I32(0))


def _largest(b: Builder, x: Value) -> Value:
    """NaN where there is one."""
    while x.type.count > 1:
        half = x.type.count // 2
        low, high = _shuffle(b, x, range(half)), _shuffle(b, x, range(half, 2 * half))
        x = _binary(b, "maximum", low, high)
    return b.extract_element(x, I32(0))


def _load_floats(b: Builder, address: Value, lanes: int, kind: int) -> Value:
    if kind == FLOAT32:
        return _load(b, _vector(F32, lanes), address, 4)
    bits = b.zext(_load(b, _vector(I16, lanes), address, 2), _vector(I32, lanes))
    return b.bitcast(b.shl(bits, _constant(I32, lanes, 16)), _vector(F32, lanes))


def _store_floats(b: Builder, x: Value, address: Value, kind: int) -> None:
    if kind == FLOAT32:
        return _store(b, x, address, 4)
    lanes = x.type.count
    bits, shift = b.bitcast(x, _vector(I32, lanes)), _constant(I32, lanes, 16)
    odd = b.and_(b.lshr(bits, shift), _constant(I32, lanes, 1))  # ties go to the even one
    rounded = b.lshr(b.add(b.add(bits, odd), _constant(I32, lanes, 0x7FFF)), shift)
    _store(b, b.trunc(rounded, _vector(I16, lanes)), address, 2)


def _exp(b: Builder, x: Value) -> Value:
    """eˣ to about 2e-7: 2ⁿ times Taylor's polynomial over ±½ ln 2; NaN stays NaN."""
    lanes = x.type.count

    def number(value: float) -> Value:
        return _constant(F32, lanes, value)

    x = _binary(b, "maximum", _binary(b, "minimum", x, number(88.0)), number(-87.0))
    n = _unary(b, "rint", b.fmul(x, number(1.44269504)))
    r = _fma(b, n, number(-0.693359375), x)  # ln 2 in two parts: the first has few bits
    r = _fma(b, n, number(2.12194440e-4), r)
    p = number(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = _fma(b, p, r, number(factor))
    power = b.add(b.fptosi(n, _vector(I32, lanes)), _constant(I32, lanes, 127))
    return b.fmul(p, b.bitcast(b.shl(power, _constant(I32, lanes, 23)), _vector(F32, lanes)))


Emit = Callable[[Builder, Sequence[Value]], Value]  # writes an instruction's IR into its caller


def _instruction(emit: Emit, result: Any = types.void) -> Callable[..., Any]:
    """A function for compiled code, of one tuple; `emit` writes what it does.

    Every argument is an int64, save the float32 that are named so.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def function(context: Any, arguments: Any) -> Any:
        def generate(context: Any, b: Builder, signature: Any, values: Sequence[Value]) -> Value:
            found = emit(b, cgutils.unpack_tuple(b, values[0]))
            return context.get_dummy_value() if found is None else found

        return result(arguments), generate

    return function


def _switch(cases: Mapping[int, Emit], result: Any = types.void) -> Callable[..., Any]:
    """An instruction whose first argument says which of some it is: one of `cases`."""

    def emit(b: Builder, arguments: Sequence[Value]) -> Value:
        case, *others = arguments
        after, none = b.append_basic_block("after"), b.append_basic_block("none")
        switch, found = b.switch(case, none), []
        for number, emit_case in cases.items():
            block = b.append_basic_block(f"case.{number}")
            switch.add_case(I64(number), block)
            b.position_at_end(block)
            found.append((emit_case(b, others), b.block))
            b.branch(after)
        b.position_at_end(none)
        b.unreachable()
        b.position_at_end(after)
        if found[0][0] is None:
            return None
        either = b.phi(found[0][0].type)
        for value, block in found:
            either.add_incoming(value, block)
        return either

    return _instruction(emit, result)


def _by_kind(emit: Callable[[int], Emit], result: Any = types.void) -> Callable[..., Any]:
    """An instruction on numbers that are stored as its first argument says."""
    return _switch({kind: emit(kind) for kind in (FLOAT32, BFLOAT16)}, result)


# ---- products -----------------------------------------------------------------------------------


def _dot(b: Builder, sums: Value, w: Value, x: Value) -> Value:
    """int32 lanes + the dot products of four weights, unsigned or not, and four signed numbers."""
    assert INSTRUCTION is not None
    if INSTRUCTION.name.startswith("vpdpbusd"):
        if binding.llvm_version_info[0] < 22:  # it declares bytes as int32
            w, x = b.bitcast(w, sums.type), b.bitcast(x, sums.type)
        return _call(b, f"llvm.x86.avx512.{INSTRUCTION.name}", sums.type, sums, w, x)
    if INSTRUCTION.name == "sdot":
        return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", sums.type, sums, w, x)
    x = _call(b, "llvm.x86.avx2.psign.b", x.type, x, w)
    w = _call(b, "llvm.abs.v32i8", w.type, w, ir.IntType(1)(0))
    pairs = _call(b, "llvm.x86.avx2.pmadd.ub.sw", _vector(I16, 16), w, x)
    quads = _call(b, "llvm.x86.avx2.pmadd.wd", sums.type, pairs, _constant(I16, 16, 1))
    return b.add(sums, quads)


def _unpack(b: Builder, bits: int, packed: Value) -> list[Value]:
    """Stored bytes → vectors of weights as the dot product takes them: one, or two of int4."""
    assert INSTRUCTION is not None
    count = packed.type.count
    if bits == 8:
        return [packed if INSTRUCTION.is_signed else b.xor(packed, _constant(I8, count, 128))]
    table = [(code if INSTRUCTION.is_signed else code + 128) % 256 for code in CODES]
    codes = ir.Constant(packed.type, table * (count // 16))
    name = {
        64: "llvm.x86.avx512.pshuf.b.512",
        32: "llvm.x86.avx2.pshuf.b",
        16: "llvm.aarch64.neon.tbl1.v16i8",
    }[count]
    low, shift = _constant(I8, count, 15), _constant(I8, count, 4)
    halves = b.and_(packed, low), b.lshr(packed, shift)
    return [_call(b, name, packed.type, codes, half) for half in halves]


def _tile(bits: int, rows: int, blocks: int) -> Emit:
    """`rows` tokens times `blocks` blocks of 16 channels of a packed matrix, all inputs.

    Arguments:
        y, y_stride: float32 rows, so many bytes apart.
        weights: the first block; of int8, whose panels are multiplied whole, the panel.
        scales: of int8's channels, float32.
        tokens, token_scales, sums: a tile of so many tokens as `quantize_group` leaves them.
        spans: inputs / 64.
        stored: blocks whose results are wanted.
    """

    def emit(b: Builder, arguments: Sequence[Value]) -> None:
        assert INSTRUCTION is not None
        y, y_stride, weights, scales, tokens, token_scales, sums, spans, stored = arguments
        lanes, rows_at_once = INSTRUCTION.lanes, min(rows, INSTRUCTION.rows)
        floats = _vector(F32, lanes)
        places = [(c, p) for c in range(blocks) for p in range(0, BLOCK, lanes)]
        at_once = max(1, INSTRUCTION.sums // rows_at_once)
        results = {(t, *place): _zeros(b, floats) for t in range(rows) for place in places}
        size = SPAN_8 if bits == 8 else SPAN_4
        # A panel's blocks lie beside each other, others behind each other.
        apart = [
            I64(4 * BLOCK * c) if bits == 8 else b.mul(spans, I64(size * c)) for c in range(blocks)
        ]
        with cgutils.for_range(b, spans) as loop:
            span = b.add(weights, b.mul(loop.index, I64(size)))
            w = [b.add(span, offset) for offset in apart]
            x = b.add(tokens, b.mul(loop.index, I64(SPAN * rows)))
            of_span = b.mul(loop.index, I64(4 * rows * (SPAN // GROUP[bits])))
            of_tokens = b.add(token_scales, of_span), b.add(sums, of_span)
            for group, first, place in product(
                range(SPAN // GROUP[bits]),
                range(0, rows, rows_at_once),
                range(0, len(places), at_once),
            ):
                some = range(first, first + rows_at_once)
                channels = places[place : place + at_once]
                found = _group_products(b, bits, rows, group, some, channels, w, x, of_tokens[1])
                for (t, c, p), integers in found.items():
                    at = _add(b, of_tokens[0], 4 * (group * rows + t))
                    scale = _splat(b, _load(b, F32, at, 4), lanes)
                    if bits == 4:
                        at = _add(b, w[c], 2 * (group * BLOCK + p))
                        own = b.fpext(_load(b, _vector(F16, lanes), at, 2 * lanes), floats)
                        scale = b.fmul(scale, own)
                    result = results[t, c, p]
                    b.store(_fma(b, b.sitofp(integers, floats), scale, b.load(result)), result)
        for c in range(blocks):
            with b.if_then(b.icmp_signed(">", stored, I64(c))):
                for (t, block, p), result in results.items():
                    if block == c:
                        value, channel = b.load(result), 4 * (BLOCK * c + p)
                        if bits == 8:
                            value = b.fmul(value, _load(b, floats, _add(b, scales, channel), 4))
                        _store(b, value, _add(b, b.add(y, b.mul(y_stride, I64(t))), channel), 4)

    return emit


def _forget_memory(b: Builder) -> None:
    """LLVM reads anew, after here, what it has read before; no code by itself."""
    b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)


def _zeros(b: Builder, kind: Any) -> Value:
    """A variable, zero where the builder stands."""
    variable = cgutils.alloca_once(b, kind)
    zero = 0 if isinstance(kind.element, ir.IntType) else 0.0
    b.store(ir.Constant(kind, [zero] * kind.count), variable)
    return variable


def _group_products(
    b: Builder,
    bits: int,
    rows: int,
    group: int,
    some: range,
    places: Sequence[tuple[int, int]],
    weights: Sequence[Value],
    tokens: Value,
    sums: Value,
) -> dict[tuple[int, int, int], Value]:
    """The integers of one group of inputs: by token, block and first channel in it."""
    assert INSTRUCTION is not None
    lanes, quads = INSTRUCTION.lanes, GROUP[bits] // 4
    found = {}
    for t in some:
        start = _constant(I32, lanes, 0)
        if not INSTRUCTION.is_signed:
            start = _splat(b, _load(b, I32, _add(b, sums, 4 * (group * rows + t)), 4), lanes)
        found.update({(t, *place): start for place in places})
    for q in range(0, quads, 1 if bits == 8 else 2):
        if bits == 8:  # else tokens are read long before their turn, and kept on the stack
            _forget_memory(b)
        for c, p in places:
            at = 4 * PANEL * q if bits == 8 else 4 * BLOCK + 32 * (group * quads + q)
            packed = _load(b, _vector(I8, 4 * lanes), _add(b, weights[c], at + 4 * p), 4 * lanes)
            for h, vector in enumerate(_unpack(b, bits, packed)):
                for t in some:
                    at = 4 * (rows * (group * quads + q + h) + t)
                    four = _splat(b, _load(b, I32, _add(b, tokens, at), 4), lanes)
                    four = b.bitcast(four, packed.type)
                    found[t, c, p] = _dot(b, found[t, c, p], vector, four)
    return found


ROWS = (1, 2, 4, 8)  # of tiles
WIDE = 2 if INSTRUCTION is not None and INSTRUCTION.lanes == 16 else 1  # blocks of a prompt's tile
# First arguments: the tile's rows; of int4 also how many blocks, WIDE of eight rows and else 1.
int8_tile = _switch({rows: _tile(8, rows, PANEL // BLOCK) for rows in ROWS})
int4_tile = _switch(
    {rows: _tile(4, rows, 1) for rows in ROWS} | {8 * WIDE: _tile(4, 8, WIDE)},
)


# ---- quantizing ---------------------------------------------------------------------------------


def _to_bytes(b: Builder, x: Value) -> Value:
    """Rounds float32 in −128 … 127 to int8, ties to even."""
    count = x.type.count
    rounded = b.fptosi(_unary(b, "rint", x), _vector(I32, count))
    return b.trunc(rounded, _vector(I8, count))


def _store_fours(b: Builder, integers: Value, address: Value, stride: Value) -> None:
    """Bytes, four by four, `stride` bytes apart."""
    count = integers.type.count // 4
    fours = b.bitcast(integers, _vector(I32, count))
    for i in range(count):
        _store(b, b.extract_element(fours, I32(i)), b.add(address, b.mul(stride, I64(i))), 4)


def _inverse(b: Builder, largest: Value, steps: float = 127.0) -> Value:
    """steps / largest, or 0."""
    is_zero = b.fcmp_ordered("==", largest, F32(0.0))
    return b.select(is_zero, F32(0.0), b.fdiv(F32(steps), largest))


def _quantize_group(bits: int, kind: int) -> Emit:
    """A group of a token's numbers → int8 in −127 … 127 and their scale, max|x| / 127.

    Arguments:
        source: float32 or bfloat16.
        target, stride: int8, each four inputs so many bytes apart.
        scale: a float32.
        total: an int32, what the weights' offset has added to the group's products, negative.
    """
    count = GROUP[bits]

    def emit(b: Builder, arguments: Sequence[Value]) -> None:
        source, target, stride, scale, total = arguments
        x = _load_floats(b, source, count, kind)
        largest = _largest(b, _unary(b, "fabs", x))
        integers = _to_bytes(b, b.fmul(x, _splat(b, _inverse(b, largest), count)))
        _store_fours(b, integers, target, stride)
        _store(b, b.fmul(largest, F32(1 / 127)), scale, 4)
        sums = _sum(b, b.sext(integers, _vector(I32, count)))
        _store(b, b.mul(sums, I32(-128)), total, 4)

    return emit


quantize_group_8 = _by_kind(partial(_quantize_group, 8))
quantize_group_4 = _by_kind(partial(_quantize_group, 4))


def _pack_row_8(kind: int) -> Emit:
    """A channel's weights → its bytes in a panel, their scale, max|w| / 127, and minus their sum.

    Arguments: source; target, of the channel's first four inputs; scale, a float32; total, an
    int32; spans.
    """

    def emit(b: Builder, arguments: Sequence[Value]) -> None:
        source, target, scale, total, spans = arguments
        size = SPAN * (4 if kind == FLOAT32 else 2)
        highest, sums = _zeros(b, _vector(F32, SPAN)), _zeros(b, _vector(I32, SPAN))
        with cgutils.for_range(b, spans) as loop:
            x = _load_floats(b, b.add(source, b.mul(loop.index, I64(size))), SPAN, kind)
            b.store(_binary(b, "maximum", b.load(highest), _unary(b, "fabs", x)), highest)
        largest = _largest(b, b.load(highest))
        is_zero = b.fcmp_ordered("==", largest, F32(0.0))
        _store(b, b.fdiv(b.select(is_zero, F32(1.0), largest), F32(127.0)), scale, 4)
        inverse = _splat(b, _inverse(b, largest), SPAN)
        with cgutils.for_range(b, spans) as loop:
            x = _load_floats(b, b.add(source, b.mul(loop.index, I64(size))), SPAN, kind)
            integers = _to_bytes(b, b.fmul(x, inverse))
            b.store(b.add(b.load(sums), b.sext(integers, _vector(I32, SPAN))), sums)
            at = b.add(target, b.mul(loop.index, I64(SPAN_8)))
            _store_fours(b, integers, at, I64(4 * PANEL))
        _store(b, b.neg(_sum(b, b.load(sums))), total, 4)

    return emit


pack_row_8 = _by_kind(_pack_row_8)


# Where a group's largest weight may come to lie among the codes: at an end, cut off a little
# beyond it, or inside, which leaves it and all others finer steps than the last one.
LEVELS = [CODES[0] * f for f in (0.85, 0.92, 0.98, 1.04, 1.12)]
LEVELS += [CODES[-1] * f for f in (0.88, 0.96, 1.05)]


def _pack_group_4(kind: int) -> Emit:
    """32 weights of a channel → half bytes in a block, and the scale that loses least.

    For each of `LEVELS` the weights are given their codes q; those codes' best scale is Σwq / Σq²,
    and leaves a squared error of Σw² − (Σwq)² / Σq². The scale is rounded to float16, the weights
    get their codes once more with it.

    Arguments: source; target, of the channel's first eight inputs; scale, a float16.
    """
    count = GROUP[4]

    def emit(b: Builder, arguments: Sequence[Value]) -> None:
        source, target, scale = arguments
        x = _load_floats(b, source, count, kind)
        high, low = _largest(b, x), _largest(b, b.fneg(x))
        extreme = b.select(b.fcmp_ordered(">", low, high), b.fneg(low), high)

        def rounded(inverse: Value) -> Value:
            steps = b.fmul(x, _splat(b, inverse, count))
            steps = _binary(b, "minnum", steps, _constant(F32, count, 127.0))
            return _to_bytes(b, _binary(b, "maxnum", steps, _constant(F32, count, -128.0)))

        def chosen(integers: Value, values: Sequence[int]) -> Value:
            """For each integer the value that belongs to the nearest code."""
            found = _constant(I8, count, values[0] % 256)
            for i, value in enumerate(values[1:]):
                between = _constant(I8, count, (CODES[i] + CODES[i + 1]) // 2 % 256)
                is_above = b.icmp_signed(">", integers, between)
                found = b.select(is_above, _constant(I8, count, value % 256), found)
            return found

        best, step = F32(-1.0), F32(0.0)
        for level in LEVELS:
            codes = chosen(rounded(_inverse(b, extreme, level)), CODES)
            q = b.sitofp(codes, x.type)
            with_x, with_q = _sum(b, b.fmul(x, q)), _sum(b, b.fmul(q, q))
            own = b.fmul(with_x, _inverse(b, with_q, 1.0))
            gain = b.fmul(with_x, own)
            is_better = b.fcmp_ordered(">", gain, best)
            best, step = b.select(is_better, gain, best), b.select(is_better, own, step)
        # Of an infinity, too, nothing but a NaN is left, which is not forgotten.
        is_number = b.fcmp_ordered("==", b.fsub(extreme, extreme), F32(0.0))
        half = b.fptrunc(b.select(is_number, step, F32(math.nan)), F16)
        _store(b, half, scale, 2)
        places = chosen(rounded(_inverse(b, b.fpext(half, F32), 1.0)), range(len(CODES)))
        order = [8 * i + j for i in range(count // 8) for j in range(4)]
        first, last = _shuffle(b, places, order), _shuffle(b, places, [i + 4 for i in order])
        both = b.or_(first, b.shl(last, _constant(I8, count // 2, 4)))
        _store_fours(b, both, target, I64(4 * BLOCK))

    return emit


pack_group_4 = _by_kind(_pack_group_4)


# ---- what lies between products -----------------------------------------------------------------


def _gelu_mul(b: Builder, arguments: Sequence[Value]) -> None:
    """gelu(gate) · up, 16 float32 each, into gate. GELU as x · σ(2z), see `int8_blocks`."""
    gate, up = arguments
    x = _load_floats(b, gate, LANES, FLOAT32)
    twice = _constant(F32, LANES, 2 * math.sqrt(2 / math.pi))
    cubic = _constant(F32, LANES, 2 * math.sqrt(2 / math.pi) * 0.044715)
    z = b.fmul(x, _fma(b, b.fmul(x, x), cubic, twice))
    above = b.fadd(_constant(F32, LANES, 1.0), _exp(b, b.fneg(z)))
    gated = b.fmul(b.fdiv(x, above), _load_floats(b, up, LANES, FLOAT32))
    _store_floats(b, gated, gate, FLOAT32)


def _exp_below(b: Builder, arguments: Sequence[Value]) -> Value:
    """exp(x − highest) of 16 float32 in place; their sum. highest: a float32."""
    at, highest = arguments
    y = _exp(b, b.fsub(_load_floats(b, at, LANES, FLOAT32), _splat(b, highest, LANES)))
    _store_floats(b, y, at, FLOAT32)
    return _sum(b, y)


def _cap(b: Builder, arguments: Sequence[Value]) -> None:
    """c · tanh(x / c) of 16 float32, in place; c: a float32."""
    at, cap = arguments
    c, two = _splat(b, cap, LANES), _constant(F32, LANES, 2.0)
    x = _load_floats(b, at, LANES, FLOAT32)
    one = _constant(F32, LANES, 1.0)
    above = b.fadd(_exp(b, b.fdiv(b.fmul(x, two), c)), one)
    _store_floats(b, b.fmul(c, b.fsub(one, b.fdiv(two, above))), at, FLOAT32)


def _add_16(b: Builder, arguments: Sequence[Value]) -> None:
    """x + y of 16 float32, into x."""
    x, y = arguments
    total = b.fadd(_load_floats(b, x, LANES, FLOAT32), _load_floats(b, y, LANES, FLOAT32))
    _store_floats(b, total, x, FLOAT32)


def _scale_16(b: Builder, arguments: Sequence[Value]) -> None:
    """x · factor of 16 float32, in place."""
    x, factor = arguments
    scaled = b.fmul(_load_floats(b, x, LANES, FLOAT32), _splat(b, factor, LANES))
    _store_floats(b, scaled, x, FLOAT32)


def _normalize_16(b: Builder, arguments: Sequence[Value]) -> None:
    """x · factor · gain of 16 float32, into out."""
    out, x, gain, factor = arguments
    scaled = b.fmul(_load_floats(b, x, LANES, FLOAT32), _splat(b, factor, LANES))
    _store_floats(b, b.fmul(scaled, _load_floats(b, gain, LANES, FLOAT32)), out, FLOAT32)


def _rotate_8(b: Builder, arguments: Sequence[Value]) -> None:
    """Turns 8 pairs of float32, whose halves lie at first and second, in place."""
    first, second, cos, sin = arguments
    x, y, c, s = (_load_floats(b, at, 8, FLOAT32) for at in (first, second, cos, sin))
    _store_floats(b, b.fsub(b.fmul(x, c), b.fmul(y, s)), first, FLOAT32)
    _store_floats(b, b.fadd(b.fmul(y, c), b.fmul(x, s)), second, FLOAT32)


def _inner(kind: int) -> Emit:
    """q · k of `vectors` times 16 numbers; q: float32, k: of the cache's kind."""
    size = LANES * (4 if kind == FLOAT32 else 2)

    def emit(b: Builder, arguments: Sequence[Value]) -> Value:
        q, k, vectors = arguments
        total = _zeros(b, _vector(F32, LANES))
        with cgutils.for_range(b, vectors) as loop:
            x = _load_floats(b, b.add(q, b.mul(loop.index, I64(4 * LANES))), LANES, FLOAT32)
            y = _load_floats(b, b.add(k, b.mul(loop.index, I64(size))), LANES, kind)
            b.store(_fma(b, x, y, b.load(total)), total)
        return _sum(b, b.load(total))

    return emit


def _mix(vectors: int, kind: int) -> Emit:
    """Σ weight · value, `vectors` times 16 channels of it, into float32.

    Arguments: out; weights, count: float32; values, stride: of the cache's kind, bytes apart.
    """
    size = LANES * (4 if kind == FLOAT32 else 2)

    def emit(b: Builder, arguments: Sequence[Value]) -> None:
        out, weights, count, values, stride = arguments
        totals = [_zeros(b, _vector(F32, LANES)) for _ in range(vectors)]
        with cgutils.for_range(b, count) as loop:
            at = b.add(weights, b.mul(loop.index, I64(4)))
            weight = _splat(b, _load(b, F32, at, 4), LANES)
            row = b.add(values, b.mul(loop.index, stride))
            for i, total in enumerate(totals):
                x = _load_floats(b, _add(b, row, size * i), LANES, kind)
                b.store(_fma(b, weight, x, b.load(total)), total)
        for i, total in enumerate(totals):
            _store_floats(b, b.load(total), _add(b, out, 4 * LANES * i), FLOAT32)

    return emit


def _store_16(kind: int) -> Emit:
    """16 float32 as numbers of a kind: target, source."""
    return lambda b, a: _store_floats(b, _load_floats(b, a[1], LANES, FLOAT32), a[0], kind)


gelu_mul, cap_16, add_16 = _instruction(_gelu_mul), _instruction(_cap), _instruction(_add_16)
scale_16, normalize_16 = _instruction(_scale_16), _instruction(_normalize_16)
rotate_8 = _instruction(_rotate_8)
exp_below = _instruction(_exp_below, types.float32)
inner = _by_kind(_inner, types.float32)
mix_1, mix_4 = _by_kind(partial(_mix, 1)), _by_kind(partial(_mix, 4))
store_16 = _by_kind(_store_16)


# ---- memory and threads -------------------------------------------------------------------------


def _pause(b: Builder, arguments: Sequence[Value]) -> None:
    """Tells the processor that this thread waits."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        _call(b, "llvm.aarch64.hint", ir.VoidType(), I32(1))
    else:
        _call(b, "llvm.x86.sse2.pause", ir.VoidType())


pause = _instruction(_pause)
store_float = _instruction(lambda b, a: _store(b, a[1], a[0], 4))
load_float = _instruction(lambda b, a: _load(b, F32, a[0], 4), types.float32)
load_int = _instruction(lambda b, a: _load(b, I64, a[0], 8), types.int64)
load_byte = _instruction(lambda b, a: b.zext(_load(b, I8, a[0]), I64), types.int64)
load_half = _instruction(lambda b, a: b.fpext(_load(b, F16, a[0], 2), F32), types.float32)
# Adds to an int64 that threads share, and returns what it was; reads one.
fetch_add = _instruction(
    lambda b, a: b.atomic_rmw("add", b.inttoptr(a[0], I64.as_pointer()), a[1], "seq_cst"),
    types.int64,
)
load_shared = _instruction(
    lambda b, a: b.load_atomic(b.inttoptr(a[0], I64.as_pointer()), "acquire", 8), types.int64
)
