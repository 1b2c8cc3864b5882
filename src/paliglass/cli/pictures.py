"""What a user names on the command line → the pictures meant."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paliglass.cli.messages import note
from paliglass.cli.results import STDIN, identity, is_drawing
from paliglass.errors import PictureError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["open_picture", "picture_names", "tell_first_frames"]


def picture_names(
    arguments: Sequence[str], recursive: bool = False, pdfs: bool = False
) -> tuple[list[str], list[str]]:
    """(files, complaints): files in order and each once, of files, folders, patterns and `-`.

    A folder stands for its own pictures, sorted; with `recursive` also for those in its folders,
    save what an earlier run drew. A pattern that the shell left alone means what it means in a
    shell, though a file that links lead to by several ways is one. Files need not exist. pdfs: take
    a folder's PDFs too.
    Complained of are empty names, folders without pictures, pictures in them of formats that are
    not read, and folders in them that cannot be opened.
    """
    names: dict[str, str] = {}
    complaints: list[str] = []
    for argument in arguments:
        if not argument:  # as of "$NOT_SET"; to `Path` it would be the folder one is in
            complaints.append("the name of a picture is empty")
            continue
        is_name = argument == STDIN or os.path.exists(argument)
        matches = [] if is_name else _once(sorted(glob.glob(argument, recursive=True)))
        for name in matches or [argument if is_name else _as_written_there(argument)]:
            files = [name]
            if os.path.isdir(name):
                files, others = _folder(Path(name), recursive, pdfs)
                complaints += others
                if not files and not others:
                    hint = "" if recursive else "; --recursive looks into its folders"
                    what = "neither pictures nor PDFs" if pdfs else f"no pictures ({_suffixes()})"
                    complaints.append(f"{name}: holds {what}{hint}")
            for file in files:
                names.setdefault(identity(file), file)
    return list(names.values()), complaints


def _as_written_there(name: str) -> str:
    """A folder's name in the letters that the file system has for it; see `find_file`."""
    from paliglass.pictures import find_file

    found = find_file(name)
    return str(found) if os.path.isdir(found) else name


def _once(names: Iterable[str]) -> list[str]:
    """Each file once: `**` follows a link to a folder around it time and again."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(os.path.realpath(name), name)
    return list(found.values())


def _folder(folder: Path, recursive: bool, pdfs: bool) -> tuple[list[str], list[str]]:
    """(the pictures in a folder, what to complain of)."""
    from paliglass.pictures import SUFFIXES, UNREAD_SUFFIXES

    problems: list[str] = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be opened ({error.strerror})")

    paths: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        paths += [Path(place, name) for name in files if not name.startswith(".")]
    suffixes = {path: path.suffix.lower() for path in sorted(paths)}
    for suffix, count in Counter(s for s in suffixes.values() if s in UNREAD_SUFFIXES).items():
        those = "picture is" if count == 1 else "pictures are"
        problems.append(
            f"{folder}: {count} {suffix} {those} left out, the format is not read; save as PNG or "
            "JPEG"
        )
    found = [
        str(path)
        for path, suffix in suffixes.items()
        if (suffix in SUFFIXES or (pdfs and suffix == ".pdf"))
        and not (path.parent != folder and is_drawing(path))
        and path.is_file()
    ]
    return found, problems


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


def tell_first_frames(names: Sequence[str]) -> None:
    """Says on stderr of which files only the first of several frames or pages was looked at."""
    if names:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        note(f"{some}: only the first frame or page was looked at; the next is {names[0]}#2")
