"""How much memory a model needs, said before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from paliglass.errors import PaliglassError

__all__ = ["gigabytes", "require_memory"]


def gigabytes(count: float) -> str:
    """Bytes as decimal GB, MB or kB, the units that files are sold in."""
    size, unit = (1e9, "GB") if count >= 1e9 else (1e6, "MB") if count >= 1e6 else (1e3, "kB")
    return f"{count / size:.1f} {unit}"


def available_memory(device: torch.device) -> int | None:
    """Bytes free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


# Of a number of a quantized model; in int4 what 3B comes to, of which half is int8.
QUANTIZED_BYTES = {"int8": 1.0, "int4": 0.75}


def require_memory(
    name: str,
    sizes: Sequence[tuple[int, int]],
    dtype: torch.dtype | None,
    device: torch.device,
    quantize: str | None = None,
) -> None:
    """Refuses a model that will not fit, with the figure and the choices that would.

    sizes: (how many numbers, bytes of each as stored) of every tensor; dtype: what they become;
    quantize: what their matrices do.

    Raises PaliglassError. The need counted is that of the weights; activations and cache of one
    picture add a few per cent.
    """

    def need(item: float | None) -> float:
        return sum(count * (item or stored) for count, stored in sizes)

    free = available_memory(device)
    needed = need(
        QUANTIZED_BYTES.get(quantize, 1.0) if quantize else dtype.itemsize if dtype else None
    )
    if free is None or needed <= free:
        return
    halved = f"dtype bfloat16 needs {gigabytes(need(2))}, " if need(2) < needed else ""
    in_bytes = f"quantize int8 needs {gigabytes(need(1))}, " if need(1) < needed else ""
    raise PaliglassError(
        f"{name}: the weights need {gigabytes(needed)}, {device.type} has {gigabytes(free)} free; "
        f"{halved}{in_bytes}a smaller model less (`paliglass info MODEL` tells)"
    )
