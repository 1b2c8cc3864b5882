"""safetensors files: opened with true errors, their numbers checked, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paliglass.errors import CheckpointError
from paliglass.files import reason, replacing, require_readable

__all__ = [
    "file_header",
    "is_finite",
    "open_tensors",
    "read_tensor",
    "require_finite",
    "save_file",
]

# Integers of a dtype's width, and those that infinity and minus infinity read as.
_INTEGERS = {
    torch.bfloat16: (torch.int16, 0x7F80, 0xFF80),
    torch.float16: (torch.int16, 0x7C00, 0xFC00),
    torch.float32: (torch.int32, 0x7F800000, 0xFF800000),
    torch.float64: (torch.int64, 0x7FF0000000000000, 0xFFF0000000000000),
}
# Names of dtypes in a file.
_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
_LINE = 64  # bytes of a line of a processor's cache
_BLOCK = 1 << 18  # numbers, which stay in a processor's cache for the second look


def open_tensors(path: Path) -> Any:
    """safetensors' handle on a file. Raises CheckpointError: why it cannot be read, or is none."""
    require_readable(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is truncated or not safetensors ({reason(error)}); copy or download it again"
        ) from None


def read_tensor(file: Any, key: str, path: Path, check: bool = True) -> Tensor:
    """A memory-mapped tensor of an open file, without NaN and infinities.

    check: whether to look for them, which reads the whole tensor.

    Raises CheckpointError naming file and tensor.
    """
    try:
        tensor: Tensor = file.get_tensor(key)
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {key} cannot be read ({reason(error)})") from None
    if check:
        require_finite(tensor, f"{path}: {key}")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor on the CPU are numbers; integers are.

    Read as integers, no finite float is above infinity, and no NaN below it; the same holds of
    those with a sign, read without one. Two maxima run at the memory's speed and make no copy,
    where `torch.isfinite` of bfloat16 takes some hundred times as long.
    """
    if tensor.dtype not in _INTEGERS or not tensor.numel():
        return True
    kind, infinity, minus_infinity = _INTEGERS[tensor.dtype]
    numbers = tensor.detach().contiguous().flatten().view(kind).numpy()
    unsigned = np.dtype(f"u{numbers.dtype.itemsize}")
    for start in range(0, len(numbers), _BLOCK):
        block = numbers[start : start + _BLOCK]
        if block.max() >= infinity or block.view(unsigned).max() >= minus_infinity:
            return False
    return True


def require_finite(tensor: Tensor, where: str) -> None:
    """Raises CheckpointError where a tensor holds NaN or an infinity; `where` names it."""
    if not is_finite(tensor):
        what = "NaN" if bool(tensor.isnan().any()) else "an infinity"
        raise CheckpointError(f"{where} holds {what}: the checkpoint is broken")


def file_header(
    tensors: Mapping[str, tuple[torch.dtype, torch.Size]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What a safetensors file begins with; its tensors follow, in this order and without gaps.

    It ends at a line of memory.
    """
    about: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape) in tensors.items():
        end = start + shape.numel() * dtype.itemsize
        about[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    header = json.dumps(about, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _LINE)
    return len(header).to_bytes(8, "little") + header


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file, put in place in one step, with the umask's mode.

    Tensors of whole lines of memory come first and start at one, which safetensors' own writer does
    not see to: what kernels read in a mapped file lies as they need it.

    Raises CheckpointError where it cannot be written, or a tensor holds NaN or an infinity, as one
    does that was too large for float16.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor.cpu()):
            raise CheckpointError(
                f"{path}: {name} would hold numbers that are not finite, and is not written; "
                "bfloat16 and float32 reach further than float16"
            )
    ordered = sorted(tensors.items(), key=lambda item: item[1].nbytes % _LINE != 0)
    about = {name: (tensor.dtype, tensor.shape) for name, tensor in ordered}
    with replacing(path) as unfinished:
        try:
            with unfinished.open("wb") as file:
                file.write(file_header(about, metadata))
                for _, tensor in ordered:
                    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                    file.write(data.numpy().data)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({reason(error)})") from None
