"""oneDNN's product with a packed int8 matrix, and how it comes to read ours where it lies.

- it wants activations as uint8 with zero point 128: of int8 it makes a reference loop
- with AVX-512 VNNI it packs a matrix as `layout` does: it is then handed our bytes, wherever they
  are, a mapped file among others
- elsewhere it makes a copy of its own, which serves prompts alone
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from paliglass.fast.layout import PANEL, SPAN
from paliglass.fast.matrix import arranged

__all__ = [
    "FEWEST_TOKENS",
    "LOW_ZERO",
    "ZERO_POINT",
    "has_kernel",
    "knows_layout",
    "multiply_packed",
    "pack",
    "view",
]

ZERO_POINT = 128
LOW_ZERO = 32  # the zero point of numbers that hardly go below 0
# The kernel reads the same weights faster for four tokens than for fewer.
FEWEST_TOKENS = 4
_MKLDNN = 3  # c10's `Layout::Mkldnn`


@lru_cache
def has_kernel() -> bool:
    """Whether this processor multiplies packed int8 matrices, tried at the extremes.

    Processors without VNNI would add pairs of products in 16 bits, where they overflow.
    """
    if not (torch._C._has_mkldnn and torch.cpu._is_vnni_supported()):
        return False
    packed = pack(torch.full((PANEL, 2 * SPAN), 127, dtype=torch.int8))
    tokens = torch.full((FEWEST_TOKENS, 2 * SPAN), 255, dtype=torch.uint8)
    ones = torch.ones(PANEL)
    return all(
        bool((product == 127 * (255 - zero) * 2 * SPAN).all())
        for zero in (ZERO_POINT, LOW_ZERO)
        for product in [multiply_packed(tokens, packed, ones, torch.float32, zero_point=zero)]
    )


def multiply_packed(
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


def pack(integers: Tensor) -> Tensor:
    """int8 N × K → oneDNN's own packed copy, in whatever layout it likes here."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(integers, None)
    return packed


@lru_cache
def knows_layout() -> bool:
    """Whether oneDNN packs a matrix as `layout` says, and takes one that is packed so."""
    try:
        return _packs_alike() and _takes_ours()
    except (AttributeError, OSError, RuntimeError):  # a torch without these functions
        return False


def _packs_alike() -> bool:
    integers = _integers(3 * PANEL - 1, 5 * SPAN - 3)
    packed, ours = pack(integers), arranged(integers)
    size = ours.nbytes
    if torch.ops.mkldnn._nbytes(packed) != size:
        return False
    address = torch.ops.mkldnn.data_ptr(packed)
    theirs = torch.frombuffer((ctypes.c_byte * size).from_address(address), dtype=torch.int8)
    sums = theirs[-4 * PANEL * 3 :].view(torch.int32)
    sums[len(integers) :] = 0  # of channels that are none: anything
    return torch.equal(theirs, ours.view(torch.int8))


def _takes_ours() -> bool:
    integers = _integers(5 * PANEL, 5 * SPAN - 3)  # full panels: described by smaller ones
    memory, ones = arranged(integers), torch.ones(len(integers))
    tokens = torch.full((FEWEST_TOKENS, integers.shape[1]), ZERO_POINT + 1, dtype=torch.uint8)
    product = multiply_packed(tokens, view(memory, *integers.shape), ones, torch.float32)
    return torch.equal(product[0].long(), integers.sum(1))


def _integers(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)


def view(memory: Tensor, rows: int, columns: int) -> Tensor:
    """oneDNN's matrix N × K over packed bytes, which have to live as long.

    What makes tensors for torch's compiled models makes it: Python has no other way to one over
    memory that is there.
    """
    library, about = _library(), _description(rows, columns)
    handle = ctypes.c_void_p()
    sizes, strides = (ctypes.c_int64 * 2)(columns, rows), (ctypes.c_int64 * 2)()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        *(ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(2), sizes, strides, ctypes.c_int64(0)),
        *(library.aoti_torch_dtype_int8(), library.aoti_torch_device_type_cpu(), 0),
        *(ctypes.byref(handle), _MKLDNN, ctypes.c_void_p(about.data_ptr())),
        ctypes.c_int64(about.nbytes),
    )
    if failed:
        raise RuntimeError("torch makes no oneDNN matrix over memory that is there")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    capsule = new_capsule(handle, None, None)
    [found] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([capsule])
    return found


@lru_cache
def _library() -> ctypes.CDLL:
    """torch's C interface."""
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
    return ctypes.CDLL(str(next((p for name in names if (p := folder / name).exists()), names[0])))


@lru_cache
def _description(rows: int, columns: int) -> Tensor:
    """oneDNN's own description of a packed matrix, 32-bit numbers.

    It is asked by packing zeros, a tenth of a second for 3B's largest. So matrices of full panels
    are described by two small ones: every number grows by as much with each panel.
    """
    panels = rows // PANEL
    if rows % PANEL or panels < 4:
        packed = pack(torch.zeros(rows, columns, dtype=torch.int8))
        about: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
        return about.clone().view(torch.int32)
    two, three = (_description(few * PANEL, columns) for few in (2, 3))
    return two + (panels - 2) * (three - two)
