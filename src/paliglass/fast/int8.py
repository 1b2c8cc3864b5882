"""Matrices in int8: half of bfloat16's memory, half of what a decoded token has to read.

Weights carry one scale per output channel, activations one per token, found as they come
(LLM.int8's vector-wise quantisation, arXiv 2208.07339, without its outliers)::

    y = (q_x · Wqᵀ) · s_x · s_w        q = round(127 · x / max|x|),   s = max|x| / 127

- the product of the integers is exact; what is lost is lost in the two roundings
- a single token, as in decoding, is rounded to 16 bits: their halves are two tokens to the kernel,
  which takes as long for four as for one
- weights are packed once, in panels (`layout`): oneDNN multiplies prompts by them where it can
  (`onednn`), with the extra `fast` a compiled decoder reads the same copy (`matrix`)
- compiled functions also take prompts where oneDNN has no such kernel, and always the products
  with the table
- a saved folder holds the panels, and they are read where they lie in the mapped file
- where there is neither (no VNNI instructions, no extra, a GPU) activations keep their precision,
  and the integers are widened at every use: as small, and more exact, but prompts are no faster
  than bfloat16's; on a CPU a few tokens are read by torch's own kernel for that
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paliglass.fast.layout import packed_bytes
from paliglass.fast.matrix import (
    PackedMatrix,
    arranged,
    is_available,
    multiply,
    quantize_into,
    rows_of,
)
from paliglass.fast.onednn import (
    FEWEST_TOKENS,
    LOW_ZERO,
    ZERO_POINT,
    has_kernel,
    knows_layout,
    multiply_packed,
    pack,
    view,
)
from paliglass.fast.widened import widened_linear

LARGEST = 127
# What to make of some tokens, told which, before they are quantised: they come in float32, and may
# be overwritten.
Transform = Callable[[Tensor, slice], Tensor]
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
def _ones(count: int) -> Tensor:
    """Weights' scales for a kernel whose bfloat16 is too coarse for the true ones."""
    return torch.ones(count, dtype=torch.bfloat16)


class Int8Linear(nn.Module):
    """`nn.Linear` with an int8 matrix: … × K → … × N, in the dtype of what comes in.

    weight: N × K, or in panels as a saved folder holds it, a vector; None once it is packed.
    scale: N. bias: N, in the model's dtype, or None. matrix: the packed panels. packed: oneDNN's
    matrix, over the same memory where it can be.
    """

    weight: Tensor | None
    scale: Tensor
    bias: nn.Parameter | None
    serves_prompts = True  # so that oneDNN's matrix is wanted

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias
        self.packed: Tensor | None = None
        self.matrix: PackedMatrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N, K."""
        return self.out_features, self.in_features

    @property
    def packed_shapes(self) -> dict[str, torch.Size]:
        """What a checkpoint may hold instead of N × K."""
        return {"weight": torch.Size([packed_bytes(8, *self.shape)])}

    @classmethod
    def quantize(cls, weight: Tensor, bias: nn.Parameter | None = None) -> Self:
        """From float weights, N × K."""
        return cls(*quantize_rows(weight), bias)

    @classmethod
    def quantize_and_pack(cls, weight: Tensor, bias: nn.Parameter | None = None) -> Self:
        """The same, ready for the fast kernels, and without integers in between where that goes."""
        empty = torch.empty(weight.shape, dtype=torch.int8, device="meta")
        layer = cls(empty, torch.empty(len(weight), device="meta"), bias)
        if weight.device.type == "cpu" and is_available():
            matrix = PackedMatrix.empty(8, *weight.shape)
            quantize_into(matrix, weight)
            layer.scale = matrix.scales[: len(weight)].clone()
            layer._take(matrix)
            return layer
        layer = cls.quantize(weight, bias)
        layer.pack()
        return layer

    def pack(self) -> None:
        """Makes the matrix ready for the fast kernels, where there are some."""
        weight = self.weight
        if weight is None or weight.is_meta:
            return
        on_cpu = weight.device.type == "cpu"
        if on_cpu and (is_available() or (has_kernel() and knows_layout())):
            panels = weight.view(torch.uint8) if weight.ndim == 1 else arranged(weight)
            matrix = PackedMatrix.of_bytes(8, *self.shape, panels)
            matrix.scales[: self.out_features] = self.scale
            self._take(matrix)
            return
        self.unpack()
        if on_cpu and has_kernel():
            assert self.weight is not None
            self.packed = pack(self.weight)  # rows are kept: they could not be read otherwise

    def unpack(self) -> None:
        """Panels that a folder held become rows, as plain torch reads them."""
        if self.weight is not None and not self.weight.is_meta and self.weight.ndim == 1:
            panels = PackedMatrix.of_bytes(8, *self.shape, self.weight.view(torch.uint8))
            self.weight = rows_of(panels, torch.arange(self.out_features)).contiguous()

    def _take(self, matrix: PackedMatrix) -> None:
        self.matrix, self.weight = matrix, None
        if has_kernel() and (self.serves_prompts or not is_available()):
            if knows_layout():
                self.packed = view(matrix.weights, *self.shape)
            else:
                self.packed = pack(rows_of(matrix, torch.arange(self.out_features)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": self.packed is not None}  # torch cannot copy oneDNN's

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"packed": None})  # type: ignore[no-untyped-call]
        if state["packed"] and self.matrix is not None:
            self._take(self.matrix)
        elif state["packed"]:
            assert self.weight is not None
            self.packed = pack(self.weight)

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
            y = multiply_packed(integers, self.packed, self.scale, torch.float32, scales)
            return torch.add(y[:1], y[1:2], alpha=256)
        if len(integers) < FEWEST_TOKENS:
            integers = F.pad(integers, (0, 0, 0, FEWEST_TOKENS - len(integers)))
        zero = tokens.zero_point
        y = multiply_packed(integers, self.packed, self.scale, tokens.dtype, zero_point=zero)
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
        if self.matrix is not None:
            return rows_of(self.matrix, ids)
        assert self.weight is not None
        return self.weight[ids]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.matrix is not None:
            destination[prefix + "weight"] = self.matrix.weights.view(torch.int8)

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
