"""Matrices in int8: half of bfloat16's memory, half of what a decoded token has to read.

Weights carry one scale per output channel, activations one per token, found as they come
(LLM.int8's vector-wise quantisation, arXiv 2208.07339, without its outliers)::

    y = (q_x · Wqᵀ) · s_x · s_w        q = round(127 · x / max|x|),   s = max|x| / 127

- the product of the integers is exact; what is lost is lost in the two roundings
- a single token, as in decoding, is rounded to 16 bits: their halves are two tokens to the kernel,
  which takes as long for four as for one
- oneDNN's kernel wants activations as uint8 with zero point 128: of int8 it makes a reference loop
- weights are packed once into the layout that kernel reads; prompts and single tokens share it
- with the extra `fast` a compiled decoder reads the same copy, see `matrix`; compiled functions
  also take prompts where oneDNN has no such kernel, and always the products with the table
- where there is neither (no VNNI instructions, no extra, a GPU) activations keep their precision,
  and the integers are widened at every use: as small, and more exact, but prompts are no faster
  than bfloat16's; on a CPU a few tokens are read by torch's own kernel for that
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast.matrix import (
    PackedMatrix,
    arrange_into,
    is_available,
    multiply,
    quantize_into,
    rows_of,
)
from paliglass.fast.widened import widened_linear

LARGEST = 127
ZERO_POINT = 128
LOW_ZERO = 32  # the zero point of numbers that hardly go below 0
# A packed matrix is a row of blocks: 64 output channels of 64 inputs, four inputs side by side.
CHANNELS, INPUTS, TOGETHER = 64, 64, 4
# What to make of some tokens, told which, before they are quantised: they come in float32, and may
# be overwritten.
Transform = Callable[[Tensor, slice], Tensor]
LARGE_PAGE = 1 << 21  # bytes
_MADV_COLLAPSE = 25  # of Linux 6.1; Python has no name for it
# The kernel reads the same weights faster for four tokens than for fewer.
FEWEST_TOKENS = 4
# What takes each of `quantize_token`'s rows out of 16 bits.
_SHIFTS = torch.tensor([[0], [8], [0], [0]], dtype=torch.int32, device="cpu")
# Numbers that each thread converts at once, about: their float32 copy stays in its cache.
_AT_ONCE = 1 << 18
# Of so many tokens, torch's kernel for int8 weights is over before they would be widened.
_FEW_TOKENS = 8


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """N × K → int8 N × K in −127 … 127, and the float32 scale of each row, N.

    `scale · integers` is within half a scale of the weight. A row of zeros has scale 1/127.
    """
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    for rows in _chunks(weight):
        largest = _largest(weight[rows])
        # `LARGEST / largest` would be a reciprocal times LARGEST, and round some ties otherwise
        # than the compiled functions.
        steps = torch.full_like(largest, LARGEST) / largest
        integers[rows] = (weight[rows] * steps).round_()
        scales[rows] = largest[:, 0] / LARGEST
    return integers, scales


@dataclass(frozen=True)
class QuantizedActivation:
    """Activations as the kernel takes them: M tokens of K numbers.

    integers: uint8, M × K; of a single token, what `quantize_token` makes of it. scales: of each
    token, M × 1, in the activations' dtype; of a single one a number. shape, dtype: the
    activations'. zero_point: the integer that stands for 0.
    """

    integers: Tensor
    scales: Tensor | float
    shape: torch.Size
    dtype: torch.dtype
    zero_point: int = ZERO_POINT

    @staticmethod
    def of(x: Tensor | QuantizedActivation, change: Transform | None = None) -> QuantizedActivation:
        """Quantises … × K, changed first if so wanted, unless that is done already."""
        if isinstance(x, QuantizedActivation):
            return x
        tokens = x.reshape(-1, x.shape[-1])
        if len(tokens) == 1:
            values = tokens.to(torch.float32, copy=change is not None)
            values = values if change is None else change(values, slice(1))
            return QuantizedActivation(*quantize_token(values), x.shape, x.dtype)
        return QuantizedActivation(*quantize_tokens(tokens, change), x.shape, x.dtype)

    def replace_numbers(
        self, integers: Tensor, scales: Tensor | float, zero_point: int = ZERO_POINT
    ) -> QuantizedActivation:
        """The same tokens with other numbers, M × N, and their scales."""
        shape = torch.Size((*self.shape[:-1], integers.shape[-1]))
        return QuantizedActivation(integers, scales, shape, self.dtype, zero_point)

    def chunk(self, parts: int) -> list[QuantizedActivation]:
        """These tokens in about so many equal parts."""
        assert isinstance(self.scales, Tensor)
        pieces = zip(self.integers.chunk(parts), self.scales.chunk(parts), strict=True)
        return [replace(self, integers=i, scales=s, shape=i.shape) for i, s in pieces]

    def __len__(self) -> int:
        return self.shape[:-1].numel()


def quantize_tokens(
    x: Tensor,
    change: Transform | None = None,
    least: float | None = None,
) -> tuple[Tensor, Tensor]:
    """M × K → uint8 M × K around 128, and the scale of each token, M × 1, of x's dtype.

    The scale is rounded to that dtype first: what is multiplied by it later is rounded only once.
    change: what to make of the tokens first.
    least: the lowest number that can come, a little below 0: integers are then around LOW_ZERO, in
    finer steps.
    """
    integers = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(len(x), 1, dtype=x.dtype, device=x.device)
    for rows in _chunks(x):
        values = x[rows].to(torch.float32, copy=True)
        if change is not None:
            values = change(values, rows)
        scales[rows] = _largest(values) / LARGEST if least is None else _scale_above(values, least)
        steps = values.mul_(scales[rows].float().reciprocal())
        if least is not None:
            steps += LOW_ZERO - ZERO_POINT
        # Through int8 and a flip of its top bit: torch converts to uint8 eight times slower.
        integers[rows] = steps.round_()
    return integers.view(torch.uint8).bitwise_xor_(ZERO_POINT), scales


def quantize_token(x: Tensor) -> tuple[Tensor, float]:
    """1 × K → uint8 around 128, 4 × K, and a scale: x ≈ scale · (first row + 256 · second row).

    These are the low and the high byte of 16 bits; the other rows are there for the kernel's speed.
    """
    scale = (float(x.abs().amax()) or 1.0) / (256 * LARGEST)
    # All above 0, so that what is cut off is rounded, and both bytes lie around 128.
    steps = (x.float() * (1 / scale)).add_(257 * ZERO_POINT + 0.5).to(torch.int32)
    return (steps >> _SHIFTS).to(torch.int8).view(torch.uint8), scale


def _chunks(matrix: Tensor) -> Iterator[slice]:
    """Rows that are converted together."""
    parts = max(1, round(matrix.numel() / (torch.get_num_threads() * _AT_ONCE)))
    rows = max(1, math.ceil(len(matrix) / parts))
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))


def _largest(x: Tensor) -> Tensor:
    """The largest magnitude of each row in float32, M × 1; 1 for a row of zeros."""
    largest = x.abs().amax(-1, keepdim=True).float()
    return largest.masked_fill_(largest == 0, 1.0)


def _scale_above(x: Tensor, least: float) -> Tensor:
    """The scale of each row, M × 1, for `least` … its largest number around LOW_ZERO."""
    # One short of 255: a scale that is rounded down, by 1/256 at most, takes the largest there.
    return (x.amax(-1, keepdim=True) / (254 - LOW_ZERO)).clamp_(min=-least / LOW_ZERO)


@lru_cache
def has_kernel() -> bool:
    """Whether this processor multiplies packed int8 matrices, tried at the extremes.

    Processors without VNNI would add pairs of products in 16 bits, where they overflow.
    """
    if not (torch._C._has_mkldnn and torch.cpu._is_vnni_supported()):
        return False
    weight = torch.full((CHANNELS, 2 * INPUTS), LARGEST, dtype=torch.int8)
    tokens = torch.full((FEWEST_TOKENS, 2 * INPUTS), 255, dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    ones = torch.ones(CHANNELS)
    return all(
        bool((product == LARGEST * (255 - zero) * 2 * INPUTS).all())
        for zero in (ZERO_POINT, LOW_ZERO)
        for product in [_multiply(tokens, packed, ones, torch.float32, zero_point=zero)]
    )


def _multiply(
    tokens: Tensor,
    packed: Tensor,
    scales: Tensor,
    dtype: torch.dtype,
    token_scale: float = 1.0,
    zero_point: int = ZERO_POINT,
) -> Tensor:
    """(tokens − zero_point) · token_scale · (packed · scales)ᵀ: M × N."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(tokens, token_scale, zero_point, packed, scales, _zeros(len(scales)), None),
        *(1.0, 0, dtype, "none", [], ""),
    )
    return product


@lru_cache
def _zeros(count: int) -> Tensor:
    """The weights' zero points, which the kernel asks for and which are none."""
    return torch.zeros(count, dtype=torch.long)


@lru_cache
def _ones(count: int) -> Tensor:
    """Weights' scales for a kernel whose bfloat16 is too coarse for the true ones."""
    return torch.ones(count, dtype=torch.bfloat16)


def _memory(packed: Tensor) -> Tensor:
    """The bytes of a packed matrix as an int8 vector that shares its memory.

    Valid as long as `packed` lives.
    """
    size = torch.ops.mkldnn._nbytes(packed)
    address = torch.ops.mkldnn.data_ptr(packed)
    return torch.frombuffer((ctypes.c_byte * size).from_address(address), dtype=torch.int8)


def _blocks(packed: Tensor, rows: int, columns: int) -> Tensor:
    """The integers of a packed matrix as they lie: N/64 × K/64 × 16 × 64, four in an int32."""
    shape = math.ceil(rows / CHANNELS), math.ceil(columns / INPUTS), INPUTS // TOGETHER, CHANNELS
    return _memory(packed).view(torch.int32)[: math.prod(shape)].view(shape)


def _to_blocks(integers: Tensor) -> Tensor:
    """N × K integers in the order of `_blocks`, zeros where rows or columns fill no block."""
    rows, columns = integers.shape
    missing = -columns % INPUTS, -rows % CHANNELS
    if any(missing):
        integers = F.pad(integers, (0, missing[0], 0, missing[1]))
    padded = integers.view(torch.int32)
    blocks = padded.view(-1, CHANNELS, padded.shape[1] * TOGETHER // INPUTS, INPUTS // TOGETHER)
    return blocks.permute(0, 2, 3, 1)


@lru_cache
def knows_layout() -> bool:
    """Whether a packed matrix lies in memory as `_blocks` takes it to: AVX-512's way.

    Then rows can be read out of it, and others of its shape packed by copying: oneDNN's own
    packing is seven times slower.
    """
    shape = 3 * CHANNELS - 1, 5 * INPUTS - 3
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-LARGEST, LARGEST + 1, shape, dtype=torch.int8, generator=generator)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    blocks = _to_blocks(weight)
    size = blocks.numel() * TOGETHER
    if torch.ops.mkldnn._nbytes(packed) != size + 4 * blocks.shape[0] * CHANNELS:
        return False
    sums = _memory(packed)[size:].view(torch.int32)[: len(weight)]
    same = torch.equal(_blocks(packed, *shape), blocks)
    return same and torch.equal(sums, -weight.sum(1, dtype=torch.int32))


_packed_by_shape: WeakValueDictionary[tuple[int, ...], Tensor] = WeakValueDictionary()


def pack(integers: Tensor) -> Tensor:
    """int8 N × K → oneDNN's packed matrix, a copy in large pages."""
    shape = tuple(integers.shape)
    like = _packed_by_shape.get(shape) if knows_layout() else None
    if like is None:
        packed: Tensor = torch.ops.onednn.qlinear_prepack(integers, None)
        _use_large_pages(_memory(packed), keep=True)
        _packed_by_shape[shape] = packed
        return packed
    packed = like.clone()  # the only way to a matrix of this layout without packing one
    _use_large_pages(_memory(packed), keep=False)
    blocks = _blocks(packed, *shape)
    blocks.copy_(_to_blocks(integers))
    sums = _memory(packed)[blocks.numel() * TOGETHER :].view(torch.int32)
    ones = torch.ones(shape[1])
    for rows in _chunks(integers):
        sums[: len(integers)][rows] = -(integers[rows].float() @ ones)
    return packed


def _unfilled(shape: tuple[int, int]) -> Tensor:
    """oneDNN's packed matrix for N × K, in large pages, to be filled in its known layout."""
    like = _packed_by_shape.get(shape)
    if like is None:
        zeros = torch.zeros(shape, dtype=torch.int8)
        packed: Tensor = torch.ops.onednn.qlinear_prepack(zeros, None)
        _packed_by_shape[shape] = packed
    else:
        packed = like.clone()
    _use_large_pages(_memory(packed), keep=False)
    return packed


def _use_large_pages(memory: Tensor, keep: bool) -> None:
    """Asks Linux to hold memory in pages of 2 MiB: a token of 3B then takes .88 of its time.

    What reads gigabytes from pages of 4 KiB waits for their addresses. keep: whether the numbers
    matter; if not, they are zeros afterwards, and the new pages come as they are written to. Other
    systems, and kernels that cannot, leave everything as it is.
    """
    start = -(-memory.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    end = (memory.data_ptr() + memory.numel()) // LARGE_PAGE * LARGE_PAGE
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or end <= start:
        return
    madvise = ctypes.CDLL(None).madvise
    address, length = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
    if madvise(address, length, advice) == 0:
        madvise(address, length, _MADV_COLLAPSE if keep else mmap.MADV_DONTNEED)


class Int8Linear(nn.Module):
    """`nn.Linear` with an int8 matrix: … × K → … × N, in the dtype of what comes in.

    weight: N × K; None once it is packed. scale: N. bias: N, in the model's dtype, or None. packed:
    oneDNN's matrix. matrix: the compiled functions', in the same memory where oneDNN's layout is
    known.
    """

    weight: Tensor | None
    scale: Tensor
    bias: nn.Parameter | None
    serves_prompts = True  # so that oneDNN's copy is wanted

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias
        self.packed: Tensor | None = None
        self.matrix: PackedMatrix | None = None

    @classmethod
    def quantize(cls, weight: Tensor, bias: nn.Parameter | None = None) -> Self:
        """From float weights, N × K."""
        return cls(*quantize_rows(weight), bias)

    @classmethod
    def quantize_and_pack(cls, weight: Tensor, bias: nn.Parameter | None = None) -> Self:
        """The same, ready for the fast kernels, and without integers in between where that goes."""
        empty = torch.empty(weight.shape, dtype=torch.int8, device="meta")
        layer = cls(empty, torch.empty(len(weight), device="meta"), bias)
        if weight.device.type == "cpu" and layer._shares_memory() and layer._make_room():
            assert layer.matrix is not None
            quantize_into(layer.matrix, weight)
            layer.weight, layer.scale = None, layer.matrix.scales[: len(weight)].clone()
            return layer
        layer = cls.quantize(weight, bias)
        layer.pack()
        return layer

    def pack(self) -> None:
        """Makes the matrix ready for the fast kernels, where there are some."""
        weight = self.weight
        if weight is None or weight.device.type != "cpu":
            return
        if self._make_room():
            assert self.matrix is not None
            arrange_into(self.matrix, weight)
            self.matrix.scales[: self.out_features] = self.scale
        if self.packed is None and self._wants_onednn():
            self.packed = pack(weight)
        # The row-major integers are let go, unless rows could not be read otherwise.
        if self.matrix is not None or (self.packed is not None and knows_layout()):
            self.weight = None

    def _wants_onednn(self) -> bool:
        return has_kernel() and (self.serves_prompts or not is_available())

    def _shares_memory(self) -> bool:
        """Whether one copy is enough."""
        return not self._wants_onednn() or knows_layout()

    def _make_room(self) -> bool:
        """An empty `matrix`, where there are compiled functions; where it shares one, `packed`."""
        if not is_available():
            return False
        shape = self.out_features, self.in_features
        if self._wants_onednn() and knows_layout():
            self.packed = _unfilled(shape)
            memory = _memory(self.packed).view(torch.uint8)
            self.matrix = PackedMatrix.of_bytes(8, *shape, memory, self.packed)
        else:
            self.matrix = PackedMatrix.empty(8, *shape)
        return True

    def forward(self, x: Tensor | QuantizedActivation) -> Tensor:
        """… × K → … × N; of a packed matrix, tokens may have been quantised before."""
        return self.multiply(x)

    def multiply(self, x: Tensor | QuantizedActivation) -> Tensor:
        """x · Wᵀ + bias."""
        if self.packed is None:
            assert isinstance(x, Tensor)
            if self.matrix is not None:
                return multiply(x, self.matrix, None if self.bias is None else self.bias.float())
            return self._widened(x)
        tokens = QuantizedActivation.of(x)
        y = self.product(tokens)
        if isinstance(tokens.scales, float):
            y = (y if self.bias is None else y + self.bias).to(tokens.dtype)
        elif self.bias is None:
            y = y.mul_(tokens.scales)
        else:
            y = torch.addcmul(self.bias, y, tokens.scales)
        return y.view(*tokens.shape[:-1], self.out_features)

    def product(self, tokens: QuantizedActivation) -> Tensor:
        """What tokens' integers give, M × N, without a bias.

        Of several, before their scales, in the activations' dtype; of a single one in float32.
        """
        assert self.packed is not None
        integers, scales = tokens.integers, tokens.scales
        if isinstance(scales, float):
            y = _multiply(integers, self.packed, self.scale, torch.float32, scales)
            return torch.add(y[:1], y[1:2], alpha=256)
        if len(integers) < FEWEST_TOKENS:
            integers = F.pad(integers, (0, 0, 0, FEWEST_TOKENS - len(integers)))
        zero = tokens.zero_point
        y = _multiply(integers, self.packed, self.scale, tokens.dtype, zero_point=zero)
        return y[: len(tokens)]

    def _widened(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        if x.requires_grad and torch.is_grad_enabled():
            product: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
            return product
        if self.weight.device.type != "cpu":
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale  # in float32: rounded once
            return (y if self.bias is None else y + self.bias).to(x.dtype)
        few = x.shape[:-1].numel() <= _FEW_TOKENS and x.dtype == torch.bfloat16
        # The kernel reads sixteen numbers at a time, past a row's end too.
        if not few or self.in_features % 16:
            return widened_linear(x, self.weight, self.bias, self.scale)
        y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, _ones(self.out_features))
        y = y * self.scale if self.bias is None else torch.addcmul(self.bias, y, self.scale)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def integers(self, ids: Tensor) -> Tensor:
        """Some rows of the matrix as int8: … → … × K."""
        if self.weight is not None:
            return self.weight[ids]
        if self.matrix is not None:
            return rows_of(self.matrix, ids)
        assert self.packed is not None
        blocks = _blocks(self.packed, self.out_features, self.in_features)
        found = blocks.permute(0, 3, 1, 2)[ids // CHANNELS, ids % CHANNELS]  # … K/64 16
        return found.flatten(-2).view(torch.int8)[..., : self.in_features]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is None:
            destination[prefix + "weight"] = self.integers(torch.arange(self.out_features))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _FrozenProduct(torch.autograd.Function):
    """An `Int8Linear`'s product with a gradient for what comes in; the matrix stays as it is.

    For the way back nothing is kept: ∂x = (∂y · scale) · W needs the integers alone, which are
    widened some rows at a time, as on the way there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        """… × K → … × N."""
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer._widened(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """… × N → … × K."""
        weight, scale = ctx.layer.weight, ctx.layer.scale
        scaled = gradient.reshape(-1, len(weight)).float() * scale
        found = scaled.new_zeros(len(scaled), weight.shape[1])
        step = max(1, _AT_ONCE // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            found.addmm_(scaled[:, rows], weight[rows].float())
        return found.view(*gradient.shape[:-1], -1).to(ctx.dtype), None


class Int8Embedding(Int8Linear):
    """`nn.Embedding` whose table is the matrix of the output layer tied to it, `Int8Head`.

    The two share one copy: rows are read out of the packed matrix, where its layout is known.
    """

    serves_prompts = False
    dtype = torch.float32  # of the rows; the model's

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]  # not activations
        """… → … × D."""
        return (self.integers(ids) * self.scale[ids][..., None]).to(self.dtype)


class Int8Head(nn.Module):
    """The output layer, … × D → … × V; it has no matrix of its own."""

    def __init__(self, table: Int8Embedding) -> None:
        super().__init__()
        # In a tuple, so that torch does not take the table for a part of this module too.
        self._tied = (table,)

    def forward(self, x: Tensor) -> Tensor:
        """… × D → … × V."""
        return self._tied[0].multiply(x)
