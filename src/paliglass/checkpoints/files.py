"""Files: JSON read with errors that name it, text written whole or not at all, folders locked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliglass.errors import CheckpointError, PaliglassError

if TYPE_CHECKING:
    from filelock import BaseFileLock


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


def lock_folder(folder: Path, name: str) -> BaseFileLock:
    """Makes a folder, and keeps other processes' runs out of it until `release()` or its end.

    name: of the file that is locked. The system lets go of it however a process dies.

    Raises PaliglassError where another process has the lock.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise PaliglassError(
            f"{folder}: another run is writing there; wait for it, or choose another folder for "
            "--out"
        ) from None
    return lock
