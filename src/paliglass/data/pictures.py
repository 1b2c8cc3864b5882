"""The picture files that annotations name: where they lie, and which way up."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from paliglass.pictures import MAX_PIXELS
from paliglass.tasks.boxes import Box

__all__ = ["Frame", "Header", "compare", "named_file", "read_header"]

_UPLOAD = re.compile(r"(?:^|/)data/(?:media/)?upload/(?P<path>[^/].*)")
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS: dict[int, Callable[[float, float], tuple[float, float]]] = {
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}


def named_file(folder: Path, name: str) -> Path:
    """The file that a name in an annotation file means, whether it exists or not.

    Windows' backslashes are taken for slashes, and letters with accents for the same whether
    written as one character or two (NFC, NFD), where the name as it stands is no file. Of the
    address that Label Studio gives an upload (/data/upload/3/…) the part behind counts, then the
    bare name. A few names are tried, and no folder is searched, for of a large set many pictures
    may be missing.
    """
    path = folder / name
    try:
        if path.exists():
            return path
        slashes = name.replace("\\", "/")
        upload = _UPLOAD.search(slashes)
        tails = () if upload is None else (upload["path"], upload["path"].rpartition("/")[2])
        for other in dict.fromkeys((name, slashes, *tails)):
            for form in ("NFC", "NFD"):
                candidate = folder / unicodedata.normalize(form, other)
                if candidate.exists():
                    return candidate
    except (OSError, ValueError):  # a name too long, or with a zero byte
        pass
    return path


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself. size: width and height as stored; orientation: EXIF's."""

    size: tuple[int, int]
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height once it is turned as EXIF says."""
        width, height = self.size
        return (height, width) if self.orientation >= 5 else (width, height)


def read_header(path: Path) -> Header | None:
    """Size and orientation without the pixels; None for what is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                # Of a PNG all would be unpacked to look for EXIF behind the pixels.
                has_exif = image.format != "PNG" or "exif" in image.info
                orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
                if image.width * image.height > MAX_PIXELS:  # nobody opens it
                    return None
                size = image.size
                if isinstance(image, TiffImageFile):  # whose size is that of the upright picture
                    size = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
                return Header(size, orientation if orientation in _TURNS else 1)
    except Exception:  # a decoder's; whoever opens the picture is told
        return None


@dataclass(frozen=True)
class Frame:
    """How annotations of a picture relate to it upright: turned by `orientation`, or not (1)."""

    orientation: int = 1

    def box(self, box: Box) -> Box:
        """A box in shares of the annotated picture → in shares of the upright one."""
        turn = _TURNS.get(self.orientation)
        if turn is None:
            return box
        (xa, ya), (xb, yb) = turn(box.x0, box.y0), turn(box.x1, box.y1)
        return Box(min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb))

    def mask(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """A mask, H × W, turned in the same way."""
        if self.orientation >= 5:
            mask = mask.T
        across = self.orientation in (2, 3, 6, 7)
        down = self.orientation in (3, 4, 7, 8)
        return mask[:: -1 if down else 1, :: -1 if across else 1]


def compare(header: Header, width: float, height: float) -> tuple[Frame | None, str | None]:
    """How annotations of a width × height picture relate to the file, and what is odd about it.

    Shares of a picture hold in any size of it, so only the proportions must be the same. The frame
    is None where they are not.
    """
    annotated = f"{width:g} × {height:g}"
    is_turned = header.orientation != 1
    if _alike((width, height), header.upright):
        if is_turned and _alike((width, height), header.size):
            return Frame(), (
                f"EXIF turns it (orientation {header.orientation}); its annotations are taken to "
                "be of the turned picture"
            )
        if (width, height) != header.upright:
            return Frame(), f"is {_of(header)}, its annotations of {annotated} pixels; they scale"
        return Frame(), None
    if is_turned and _alike((width, height), header.size):
        return Frame(header.orientation), (
            f"EXIF turns it (orientation {header.orientation}), its annotations are of the picture "
            "as it is stored; they are turned with it"
        )
    return None, f"has {_of(header)} pixels, its annotations are of {annotated}"


def _of(header: Header) -> str:
    return " × ".join(map(str, header.upright))


def _alike(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two sizes have the same proportions, within a pixel."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)
