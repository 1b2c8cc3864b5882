"""Packed int8 and int4 matrices: made from float weights, multiplied, read row by row.

int8: a scale for each output channel. int4: one for each group of 32 inputs of a channel, searched
for the least squared error, in float16. Activations are rounded to int8 as they come, with a scale
for each group of 64 (int8) or 32 (int4) inputs of a token: the same for one token and for many, so
that an answer does not depend on what else is in its batch::

    y = Σ_groups (q_x · q_w) · s_x · s_w        q_x = round(127 · x / max|x|),  s_x = max|x| / 127

One copy serves single tokens and prompts. Needs numba (the extra `fast`) and a processor with dot
products of bytes: `is_available`; `obstacle` says what is missing.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from paliglass.errors import not_installed
from paliglass.fast.compiled import is_kept, library
from paliglass.fast.layout import (
    BLOCK,
    CODES,
    GROUP,
    PANEL,
    SCRATCH,
    SPAN,
    SPAN_4,
    SPAN_8,
    packed_bytes,
)
from paliglass.fast.threads import team

KINDS = {torch.float32: 0, torch.bfloat16: 1}
LARGE_PAGE = 1 << 21  # bytes
ALIGNMENT = 64  # bytes
MOST_ROWS = 8  # tokens of a tile


def is_available() -> bool:
    """Whether there are compiled functions for this processor."""
    return obstacle() is None


@lru_cache
def obstacle() -> str | None:
    """What they lack, and the mend."""
    if find_spec("numba") is None:
        return not_installed("numba")
    try:
        from paliglass.fast.processor import INSTRUCTION

        if INSTRUCTION is None:
            return "this processor has no dot product of bytes (AVX2, VNNI, or ARM's dotprod)"
        if not is_kept():
            import_module("numba")  # it refuses a numpy that is too new for it
    except ImportError as error:
        return f"numba does not work here ({' '.join(str(error).split())[:200]})"
    return None


@dataclass(frozen=True)
class PackedMatrix:
    """N output channels × K inputs, see `layout`.

    bits: 8 or 4. weights: its bytes, at an address that is a multiple of 64. scales: of int8,
    float32, N in full blocks; else empty.
    """

    bits: int
    rows: int
    columns: int
    weights: Tensor
    scales: Tensor

    @staticmethod
    def empty(bits: int, rows: int, columns: int) -> PackedMatrix:
        """To be filled; what fills up its last panel, or block, is zeros."""
        weights = large_buffer(packed_bytes(bits, rows, columns))
        spans = -(-columns // SPAN)
        if bits == 8 and rows % PANEL:
            weights[rows // PANEL * spans * SPAN_8 :] = 0
        elif rows % BLOCK:
            weights[-spans * SPAN_4 :] = 0
        return PackedMatrix(bits, rows, columns, weights, _full_blocks(rows, bits))

    @staticmethod
    def of_bytes(bits: int, rows: int, columns: int, weights: Tensor) -> PackedMatrix:
        """Of `layout.packed_bytes` that are packed; int8's scales are 0.

        They stay where they are, in a mapped file too, unless their address suits no kernel.
        """
        if weights.data_ptr() % ALIGNMENT:
            weights = large_buffer(weights.numel()).copy_(weights.flatten())
        else:
            _prefer_large_pages(weights)
        return PackedMatrix(bits, rows, columns, weights.flatten(), _full_blocks(rows, bits))

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK)

    @property
    def spans(self) -> int:
        return -(-self.columns // SPAN)

    @property
    def descriptor(self) -> NDArray[np.int64]:
        """What compiled code knows of it; valid as long as the matrix lives."""
        addresses = self.weights.data_ptr(), self.scales.data_ptr()
        return np.array([self.bits, *addresses, self.blocks, self.spans], dtype=np.int64)

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes + self.scales.nbytes


def _full_blocks(rows: int, bits: int) -> Tensor:
    return torch.zeros(-(-rows // BLOCK) * BLOCK if bits == 8 else 0)


def large_buffer(size: int) -> Tensor:
    """Uninitialised bytes, in pages of 2 MiB where Linux has them: gigabytes read faster."""
    buffer = torch.empty(size, dtype=torch.uint8)
    _prefer_large_pages(buffer)
    return buffer


def _prefer_large_pages(memory: Tensor) -> None:
    """Asks Linux for pages of 2 MiB, of memory or of a mapped file."""
    start = -(-memory.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    end = (memory.data_ptr() + memory.nbytes) // LARGE_PAGE * LARGE_PAGE
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None and end > start and memory.device.type == "cpu":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def quantize(weight: Tensor, bits: int) -> PackedMatrix:
    """From N × K float32 or bfloat16 weights."""
    matrix = PackedMatrix.empty(bits, *weight.shape)
    quantize_into(matrix, weight)
    return matrix


def quantize_into(matrix: PackedMatrix, weight: Tensor) -> None:
    """The same, into a matrix of its shape."""
    weight = _padded(_known_kind(weight))
    descriptor = matrix.descriptor
    job = np.array([descriptor.ctypes.data, *_source(weight)], dtype=np.int64)
    team().run(library()["pack"], 1, job, weight.nbytes)


def arranged(integers: Tensor) -> Tensor:
    """int8 N × K in −127 … 127 → their bytes as `layout` packs them."""
    rows, columns = integers.shape
    spans, panels = -(-columns // SPAN), -(-rows // PANEL)
    padded = F.pad(integers, (0, -columns % SPAN, 0, -rows % PANEL)).view(torch.int32)
    memory = large_buffer(packed_bytes(8, rows, columns))
    weights, sums = memory[: -4 * PANEL * panels], memory[-4 * PANEL * panels :].view(torch.int32)
    fours = padded.view(panels, PANEL, spans, SPAN // 4)
    weights.view(torch.int32).view(panels, spans, SPAN // 4, PANEL).copy_(fours.permute(0, 2, 3, 1))
    torch.sum(padded.view(torch.int8), 1, dtype=torch.int32, out=sums).neg_()
    return memory


def bits_of(name: str, method: str) -> int:
    """The bits of a matrix, by its name in a checkpoint: all 8 for "int8".

    For "int4", 8 where mini loses most by 4 (`workshop.int4_quality`): vision tower, projector,
    embedding and head, the first layer, attention. The MLPs, four fifths of 3B's decoder, have 4.
    """
    is_mlp = "language_model" in name and ".mlp." in name and ".layers.0." not in name
    return 4 if method == "int4" and is_mlp else 8


def _known_kind(x: Tensor) -> Tensor:
    return x if x.dtype in KINDS else x.float()


def _padded(x: Tensor) -> Tensor:
    """… × K with K a multiple of 64, its last axis without gaps; itself where it is so already."""
    missing = -x.shape[-1] % SPAN
    x = F.pad(x, (0, missing)) if missing else x
    return x if x.stride(-1) == 1 else x.contiguous()


def tile_rows(count: int) -> int:
    """Tokens of a tile: 1, 2, 4 or 8."""
    return next((rows for rows in (1, 2, 4) if count <= rows), MOST_ROWS)


class Activations:
    """Room for `count` quantized tokens of a matrix's inputs."""

    def __init__(self, count: int, matrix: PackedMatrix) -> None:
        rows = tile_rows(count)
        size = -(-count // rows) * rows * matrix.spans * SPAN
        # Places in a tile that no token takes are multiplied too.
        make = torch.zeros if count % rows else torch.empty
        self.integers = make(size, dtype=torch.int8)
        self.scales = make(size // GROUP[matrix.bits])
        self.sums = make(size // GROUP[matrix.bits], dtype=torch.int32)

    @property
    def addresses(self) -> tuple[int, int, int]:
        return self.integers.data_ptr(), self.scales.data_ptr(), self.sums.data_ptr()


def multiply(x: Tensor, matrix: PackedMatrix, bias: Tensor | None = None) -> Tensor:
    """x · Wᵀ + bias, … × K → … × N, in x's dtype. bias: N, float32."""
    if bias is not None:
        bias = F.pad(bias, (0, -len(bias) % BLOCK))
    return _run("linear", x, (matrix,), bias)


def geglu(x: Tensor, gate: PackedMatrix, up: PackedMatrix, down: PackedMatrix) -> Tensor:
    """down(gelu(gate(x)) · up(x)), … × D → … × D, in x's dtype."""
    return _run("geglu", x, (gate, up, down), None)


def _run(name: str, x: Tensor, matrices: tuple[PackedMatrix, ...], bias: Tensor | None) -> Tensor:
    """A function of `kernels` that takes x through the matrices."""
    first, last = matrices[0], matrices[-1]
    tokens = _padded(_known_kind(x.detach().reshape(-1, x.shape[-1])))
    count, rows = len(tokens), tile_rows(len(tokens))
    shape = -(-count // rows) * rows, -(-last.rows // BLOCK) * BLOCK
    y = torch.empty(shape)
    out = y if tokens.dtype == torch.float32 else torch.empty(shape, dtype=tokens.dtype)
    descriptors = np.stack([matrix.descriptor for matrix in matrices])
    room = Activations(count, first)
    hidden = Activations(count, last)  # of `geglu` alone
    scratch = torch.empty(team().threads * SCRATCH, dtype=torch.uint8)
    job = [descriptors.ctypes.data, rows, *_source(tokens), *room.addresses]
    job += [y.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()]
    job += [*hidden.addresses, scratch.data_ptr()]
    work = sum(matrix.nbytes for matrix in matrices) * max(1, count // MOST_ROWS)
    team().run(library()[name], 4, np.array(job, dtype=np.int64), work)
    return out[:count, : last.rows].reshape(*x.shape[:-1], last.rows).to(x.dtype)


def _source(tokens: Tensor) -> tuple[int, int, int, int]:
    """Kind, address, bytes between rows, and rows."""
    stride = tokens.stride(0) * tokens.element_size()
    return KINDS[tokens.dtype], tokens.data_ptr(), stride, len(tokens)


def integers(matrix: PackedMatrix) -> tuple[Tensor, Tensor]:
    """The weights' integers, int8 N × K, and scales: N (int8) or N × K/32 (int4), float32."""
    if matrix.bits == 8:
        return rows_of(matrix, torch.arange(matrix.rows)), matrix.scales[: matrix.rows]
    blocks, spans = matrix.blocks, matrix.spans
    packed = matrix.weights.view(blocks, spans, SPAN_4)[..., 4 * BLOCK :]
    packed = packed.reshape(blocks, spans * 8, BLOCK, 4)  # 8 inputs each
    halves = torch.stack((packed & 15, packed >> 4), dim=3)  # blocks, eights, BLOCK, 2, 4
    places = halves.permute(0, 2, 1, 3, 4).reshape(blocks * BLOCK, -1)
    found = torch.tensor(CODES, dtype=torch.int8)[places.int()]
    scales = group_scales(matrix).transpose(1, 2).reshape(blocks * BLOCK, -1).float()
    groups = -(-matrix.columns // GROUP[4])
    return found[: matrix.rows, : matrix.columns], scales[: matrix.rows, :groups]


def group_scales(matrix: PackedMatrix) -> Tensor:
    """int4's scales as they lie, float16: N/16 × K/32 × 16."""
    data = matrix.weights.view(matrix.blocks, matrix.spans, SPAN_4)
    scales = data[..., : 4 * BLOCK].contiguous().view(torch.float16)
    return scales.view(matrix.blocks, matrix.spans * 2, BLOCK)


def rows_of(matrix: PackedMatrix, ids: Tensor) -> Tensor:
    """Some rows of an int8 matrix: … → … × K."""
    panels = matrix.weights[: -(-matrix.rows // PANEL) * matrix.spans * SPAN_8].view(torch.int32)
    fours = panels.view(-1, matrix.spans, SPAN // 4, PANEL).permute(0, 3, 1, 2)
    found = fours[ids // PANEL, ids % PANEL]  # … K/64 16
    return found.flatten(-2).view(torch.int8)[..., : matrix.columns]
