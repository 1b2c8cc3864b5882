"""What a user names on the command line → the pictures meant."""

from __future__ import annotations

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from paliglass.cli.results import STDIN, identity, is_drawing
from paliglass.errors import PictureError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
R = TypeVar("R")


def picture_names(arguments: Sequence[str], recursive: bool = False) -> tuple[list[str], list[str]]:
    """(files, complaints): files in order and each once, of files, folders, patterns and `-`.

    A folder stands for its own pictures, sorted; with `recursive` also for those in its folders,
    save what an earlier run drew. A pattern that the shell left alone means what it means in a
    shell. Files need not exist. A folder without pictures is complained of.
    """
    names: dict[str, str] = {}
    complaints = []
    for argument in arguments:
        is_name = argument == STDIN or os.path.exists(argument)
        matches = [] if is_name else sorted(glob.glob(argument, recursive=True))
        for name in matches or [argument]:
            files = _folder(Path(name), recursive) if os.path.isdir(name) else [name]
            if not files:
                hint = "" if recursive else "; --recursive looks into its folders"
                complaints.append(f"{name}: holds no pictures ({_suffixes()}){hint}")
            for file in files:
                names.setdefault(identity(file), file)
    return list(names.values()), complaints


def _folder(folder: Path, recursive: bool) -> list[str]:
    from paliglass.pictures import SUFFIXES

    return [
        str(path)
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (path.parent != folder and is_drawing(path))
        and path.is_file()
    ]


def _suffixes() -> str:
    from paliglass.pictures import SUFFIXES

    return ", ".join(sorted(SUFFIXES))


def open_picture(name: str) -> Image.Image:
    """An upright RGB image; `-` reads standard input. Raises PictureError."""
    from paliglass.pictures import load_picture

    if name != STDIN:
        return load_picture(name)
    if sys.stdin.isatty():
        raise PictureError("standard input is the keyboard; pipe a picture into it")
    try:
        return load_picture(sys.stdin.buffer.read())
    except PictureError as error:
        raise PictureError(f"standard input: {str(error).partition(': ')[2]}") from None


def work_ahead(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], count: int
) -> Iterator[tuple[T, Future[R]]]:
    """Each item with function(item), in order; `count` more are under way in the pool, or done.

    No more than that, so that memory stays flat however many items there are.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
