"""JSON objects, read with an error that names the file and written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from paliglass.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: there is no {path.name}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return data


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place in one step."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_json(path: Path, data: object) -> None:
    """JSON that diffs well, put in place in one step."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
