"""What a user names on the command line → the pictures meant."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paliglass.errors import PictureError

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"


def picture_names(arguments: Sequence[str], recursive: bool = False) -> list[str]:
    """Files, in order and each once, of files, folders, glob patterns and `-`.

    A folder stands for its own pictures, sorted; with `recursive` also for those in its folders.
    A pattern that the shell left alone means what it means in a shell. Files need not exist.

    Raises PictureError for a folder without pictures.
    """
    names: dict[str, str] = {}
    for argument in arguments:
        is_name = argument == STDIN or os.path.exists(argument)
        matches = [] if is_name else sorted(glob.glob(argument, recursive=True))
        for name in matches or [argument]:
            for file in _folder(Path(name), recursive) if os.path.isdir(name) else [name]:
                names.setdefault(identity(file), file)
    return list(names.values())


def _folder(folder: Path, recursive: bool) -> list[str]:
    from paliglass.pictures import SUFFIXES

    found = sorted(
        path
        for path in (folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        hint = "" if recursive else "; --recursive looks into its folders"
        raise PictureError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))}){hint}")
    return [str(path) for path in found]


def identity(name: str) -> str:
    """Equal for two names of one picture."""
    return name if name == STDIN else os.path.abspath(name)


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
