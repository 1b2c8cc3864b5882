"""What was measured at load, kept for who asks why a way was chosen: `paliglass info` does.

A small JSON file for each shape of layer, beside the machine code, under a name that tells all that
the times depend on but the dtype: kernels, libraries, processor, threads. Nothing is decided by it:
each load measures anew, since what else the machine does changes too.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from paliglass.config import GemmaConfig
from paliglass.errors import PaliglassError
from paliglass.fast.compiled import cache_folder, source_key
from paliglass.files import read_json, write_json

__all__ = ["LayerTimes", "recall", "remember"]


@dataclass(frozen=True)
class LayerTimes:
    """Medians of what a token takes through one int8 layer, ms: by modules, and compiled."""

    modules_ms: float
    compiled_ms: float

    @property
    def is_compiled_faster(self) -> bool:
        return self.compiled_ms < self.modules_ms

    def __str__(self) -> str:
        chosen = "compiled" if self.is_compiled_faster else "by modules"
        return (
            f"at the last load a token took {self.modules_ms:.3g} ms through a layer by modules, "
            f"{self.compiled_ms:.3g} ms compiled: {chosen} it is"
        )


def remember(config: GemmaConfig, times: LayerTimes) -> None:
    """Keeps what was measured of a layer of this shape. A full disk, or none to write to, is no
    error: then it is not told.
    """
    path = _place(config)
    if path is not None:
        with suppress(OSError, PaliglassError):
            write_json(path, asdict(times))


def recall(config: GemmaConfig) -> LayerTimes | None:
    """What was measured last, on this processor with as many threads; None if nothing was."""
    path = _place(config)
    if path is None:
        return None
    with suppress(PaliglassError, TypeError, ValueError):
        found = read_json(path)
        return LayerTimes(**{name: float(value) for name, value in found.items()})
    return None


def _place(config: GemmaConfig) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    shape = {name: value for name, value in asdict(config).items() if name in _SHAPE}
    about = json.dumps([source_key(), torch.__version__, shape, torch.get_num_threads()])
    return folder / f"layer-{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"


_SHAPE = (
    *("model_type", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
