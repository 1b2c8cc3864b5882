"""Checkpoints in and out: transformers folders, hub repositories, big_vision .npz files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paliglass.checkpoints.big_vision import load_big_vision
    from paliglass.checkpoints.folder import load_hf_model
    from paliglass.checkpoints.mask_codec import load_mask_codec
    from paliglass.checkpoints.saving import save_folder

__all__ = ["load_big_vision", "load_hf_model", "load_mask_codec", "save_folder"]

# Imported on first use: who asks where a model lies, or writes a file, need not wait for torch.
_PLACES = {
    "load_big_vision": "big_vision",
    "load_hf_model": "folder",
    "load_mask_codec": "mask_codec",
    "save_folder": "saving",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
