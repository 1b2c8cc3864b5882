"""Changes to files on the disk: a good folder, made into one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Of a folder's model.safetensors."""
    file = folder / "model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file, {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Keys of a JSON object, which may not be there yet."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))
