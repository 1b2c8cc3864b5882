"""Files: JSON read with an error that names the file, anything written whole or not, locks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paliglass.errors import CheckpointError, PaliglassError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "lock_folder",
    "read_json",
    "reason",
    "replacing",
    "require_readable",
    "write_json",
    "write_whole",
]

MAX_JSON = 100_000_000  # bytes


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file for the block to fill, which takes the place of `path` when that has ended well.

        with replacing(path) as unfinished:
            unfinished.write_text(text)

    Nobody ever reads half a file, and where the block raises, `path` stays what it was. The new
    file lies beside it under a name that cannot be foreseen and is taken by nobody (O_EXCL), so
    that no link laid in wait is followed. Whatever the block makes of its mode, it ends with what
    the umask allows; and it is on the disk before it takes the other's place.

    Raises OSError that names `path` where nothing can be written beside it, PaliglassError where
    it is no regular file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise PaliglassError(f"{path}: is no regular file, and cannot be replaced")
    unfinished, mode = _new_file(path)
    try:
        yield unfinished
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        unfinished.chmod(mode)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file beside `path`, and the mode that the umask gives it."""
    while True:
        unfinished = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        with contextlib.closing(os.fdopen(descriptor)):
            return unfinished, os.fstat(descriptor).st_mode & 0o777


def require_readable(path: Path) -> None:
    """Raises CheckpointError, naming the file, where it is missing or cannot be read, and why.

    Libraries call a file broken, or missing, that one only has no right to read.
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is no regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: there is no {path.name}") from None
    except NotADirectoryError:
        raise CheckpointError(f"{path.parent}: is no folder with {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, without NaN and infinities; raises CheckpointError naming it."""
    require_readable(path)
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path}: is too large for JSON of settings")
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise CheckpointError(f"{path}: is not JSON of settings (too deeply nested)") from None
    except ValueError as error:  # what is no UTF-8, no JSON or no number
        raise CheckpointError(f"{path}: is not JSON ({reason(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return data


def reason(error: Exception) -> str:
    """What another library says, on one line and not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number")
    return value


def write_whole(path: Path, text: str) -> None:
    """Puts a file in place in one step."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


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
