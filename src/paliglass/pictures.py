"""0 · Whatever a user calls a picture → an upright RGB image.

Boxes and masks refer to what this returns: rotated as EXIF says, in sRGB, transparency laid over
white, and of several frames or pages the one named, else the first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import sys
import threading
import unicodedata
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from paliglass.colours import IS_FIRST_OF_SEVERAL, MAX_PIXELS, to_rgb
from paliglass.errors import PictureError, not_installed
from paliglass.files import reason

if TYPE_CHECKING:
    from torch import Tensor

    Array = NDArray[np.generic] | Tensor
else:
    Array = NDArray[np.generic]

__all__ = [
    "FORMATS",
    "IS_FIRST_OF_SEVERAL",
    "MAX_PIXELS",
    "SUFFIXES",
    "UNREAD_SUFFIXES",
    "Picture",
    "Pictures",
    "PreparedPicture",
    "find_file",
    "load_picture",
    "page_numbers",
    "picture_file",
    "picture_rows",
]


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as the model takes it; see `PaliGemmaProcessor.prepare`.

    pixels: 3 × S × S. size: width and height of the upright picture, to which coordinates refer.
    source: what the picture was made of, for results to be drawn on, where somebody holds that
    anyway.
    """

    pixels: Tensor
    size: tuple[int, int]
    source: Any = None

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal pixels, by which what the model made of them is found again."""
        return hashlib.blake2b(self.pixels.contiguous().numpy().data, digest_size=16).digest()


Picture = (
    Image.Image
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Array
    | PreparedPicture
)
"""A path (`movie.gif#5`: its fifth frame), a `data:` address, a PIL image, the bytes of a file, a
file opened in binary mode, an array (H × W, H × W × 3 or H × W × 4), a tensor (the same, or
3 × H × W), or what the processor has prepared."""

Pictures = Picture | Sequence[Picture | Sequence[Picture]]
"""A picture, a list of them, or a list of lists: the several pictures of each prompt."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")
"""Pillow's names of the formats that are opened, whatever a file's suffix says. Its others are not:
some start other programs, as EPS does Ghostscript."""

SUFFIXES = frozenset(
    """
    .apng .avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pfm .pgm .png .pnm .ppm .tif .tiff
    .webp
    """.split()
)
"""What is taken for a picture in a folder. A file named on its own is tried whatever its name."""

UNREAD_SUFFIXES = frozenset(
    """
    .arw .cr2 .cr3 .dng .eps .exr .hdr .heic .heif .hif .ico .jxl .nef .orf .psd .raf .rw2 .svg
    .tga
    """.split()
)
"""Pictures too, yet of formats that are not read: a folder's are to be named, not passed over."""

MAX_FRAMES = 5_000  # of a TIFF; each is read only once all before it are
_SUBFILE_TYPE = 254  # TIFF's tag of what a frame is; bit 0: a smaller copy, bit 2: a mask
_TIFF = re.compile(rb"II[*+]\x00|MM\x00[*+]")
_PDF = re.compile(rb"[\s\x00\xef\xbb\xbf]*%PDF-")  # how one begins
_PDF_SCALE = 2.0  # pixels a point: 144 dots an inch
_PDF_LONGEST = 4096  # pixels; a larger page is drawn smaller
_PDF_LOCK = threading.Lock()  # PDFium is not made for threads

_OTHERS = (  # how files begin that are pictures of other kinds
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
    (rb"8BPS", "a Photoshop file"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC (HEIF)"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (rb"\x00\x00\x01\x00", "an icon file"),
    (rb"BLP[12]", "a BLP texture"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"\s*<(\?xml|svg|!DOCTYPE svg)", "SVG"),
    (rb"II\*\x00|MM\x00\*", "a TIFF of a rare kind"),
)


def picture_rows(images: Pictures) -> list[list[Picture]]:
    """What a user gave, as one list of pictures for each prompt. An array or bytes is a picture.

    Raises PictureError for a prompt without any.
    """
    entries = images if isinstance(images, list | tuple) else [images]
    rows = [entry if isinstance(entry, list | tuple) else [entry] for entry in entries]
    if not all(rows):
        raise PictureError("a list of the pictures of one prompt is empty")
    return cast("list[list[Picture]]", rows)


def load_picture(source: Picture, frame: int | None = None) -> Image.Image:
    """Opens a picture as upright RGB, W × H pixels of 8 bits, in sRGB.

    Greys of 12, 16 or 32 bits and floats are scaled, colour profiles (ICC) converted. A page of a
    PDF is drawn at 144 dots an inch.

    Args:
        source: see `Picture`. Only `FORMATS` and PDF are read. A `#3` behind a path is the frame,
            unless there is a file of that very name.
        frame: which of a file's frames or pages, counted from 1; the first by default.

    Raises PictureError, naming the file, where it is missing, empty, truncated, not a picture, has
    no such frame, or is so large once unpacked that it would fill the memory.
    """
    name = _name(source)
    with _picture_errors(name):
        return _load(source, name, frame)


@contextmanager
def _picture_errors(name: str) -> Iterator[None]:
    """Turns whatever the block raises into a PictureError that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd metadata; size is checked here
            yield
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{name}: is a folder, not a picture") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: too many pixels; scale the picture down first") from None
    except OSError as error:
        why = error.strerror if error.filename is not None else reason(error)
        raise PictureError(f"{name}: cannot be read ({why})") from None
    except Exception as error:  # decoders raise all kinds on broken files, MemoryError too
        raise PictureError(f"{name}: cannot be read ({reason(error)})") from error


def page_numbers(path: str | os.PathLike[str]) -> list[int]:
    """The pages of a PDF, or of a TIFF that is not its first frame alone: the `frame` of each.

    [] for other files, which are one page.

    Raises PictureError, naming the file, where it is missing or broken, a TIFF has more than 5,000
    frames, or the library for PDFs is missing.
    """
    name = _name(path)
    with _picture_errors(name), _open(find_file(path)) as file:
        start = file.read(1024)
        if _PDF.match(start):
            with _pdf_document(file, name) as document:
                return list(range(1, len(document) + 1))
        if not _TIFF.match(start):
            return []
        try:
            with Image.open(file, formats=["TIFF"]) as image:
                assert isinstance(image, TiffImageFile)
                pages = _tiff_pages(image, name)
        except UnidentifiedImageError:  # `load_picture` says what it is
            return []
        return [] if pages == [1] else pages


def _tiff_pages(image: TiffImageFile, name: str) -> list[int]:
    """The frames, counted from 1, that are neither another's thumbnail nor its mask."""
    pages: list[int] = []
    for number in range(MAX_FRAMES + 1):
        try:
            image.seek(number)
        except EOFError:
            return pages
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & 0b101:
            pages.append(number + 1)
    raise PictureError(f"{name}: has more than {MAX_FRAMES:,} frames; split it first")


def find_file(path: str | os.PathLike[str]) -> Path:
    r"""The file that a path means, however the path is spelt.

    Where there is none of that very name: one with `/` for `\`, or whose letters are composed
    otherwise (é as one character or two: NFC, NFD), as names from another system are. The path
    itself where there is none.
    """
    exact = Path(path)
    if os.path.lexists(exact):
        return exact
    text = os.fspath(path)
    found = Path(exact.anchor)
    for part in Path(text.replace("\\", "/")).parts[len(Path(exact.anchor).parts) :]:
        if not os.path.lexists(found / part):
            try:
                entries = sorted(os.listdir(found))
            except OSError:
                return exact
            composed = unicodedata.normalize("NFC", part)
            same = (entry for entry in entries if unicodedata.normalize("NFC", entry) == composed)
            part = next(same, "")
            if not part:
                return exact
        found /= part
    return found


def picture_file(name: str | os.PathLike[str]) -> Path:
    """The file that a picture's name means, its frame or page aside; see `find_file`."""
    return _split_frame(name)[0]


_SAVE = "save the picture and name the file"
_MENDS = {
    "file": "give the path alone",
    "https": f"{_SAVE} (or fetch it: paliglass.fetching.fetch_picture)",
}


def _name(source: object) -> str:
    """What messages call a picture."""
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        if _is_data_address(source):
            return "picture (data: address)"
        return source if len(source) <= 300 else f"{source[:100]}…"
    inner = getattr(source, "name", None)
    return inner if isinstance(inner, str) else f"picture ({type(source).__name__})"


def _load(source: Any, name: str, frame: int | None) -> Image.Image:
    if frame is not None and (type(frame) is not int or frame < 1):
        raise PictureError(f"{name}: frame is {frame!r}; frames and pages count from 1")
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        source = _from_tensor(source)
    if isinstance(source, np.ndarray | Image.Image):
        if frame is not None:
            raise PictureError(f"{name}: frame is for files; an image or array is one picture")
        return to_rgb(source if isinstance(source, Image.Image) else _from_array(source), name)
    if isinstance(source, str) and _is_data_address(source):
        source = _from_data_address(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), name, frame)
    if isinstance(source, str | os.PathLike):
        if isinstance(source, str) and (scheme := re.match(r"([a-z][a-z0-9+.-]+)://", source)):
            raise PictureError(
                f"{name}: {scheme[1]} addresses are not opened; {_MENDS.get(scheme[1], _SAVE)}"
            )
        if not os.fspath(source):
            raise PictureError("the name of a picture is empty")
        path, named = _split_frame(source)
        if named == 0:
            raise PictureError(f"{name}: frames and pages count from 1")
        with _open(path) as file:
            return _from_file(file, name, named if frame is None else frame)
    if hasattr(source, "read"):
        return _from_file(source, name, frame)
    raise PictureError(
        f"{type(source).__name__} is not a picture: give a path, a PIL image, bytes, an open file, "
        "an array or a tensor"
    )


def _split_frame(source: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """`movie.gif#5` → (movie.gif, 5), where there is no file of that very name."""
    path = find_file(source)
    match = re.fullmatch(r"(.+)#(\d{1,9})", os.fspath(source), re.DOTALL)
    if match is None or os.path.lexists(path):
        return path, None
    return find_file(match[1]), int(match[2])


def _open(path: Path) -> IO[bytes]:
    # A pipe or a device may never end, or never begin.
    if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
        raise PictureError(f"{path}: is no regular file")
    return path.open("rb")


def _is_data_address(text: str) -> bool:
    return text[:5].lower() == "data:"


def _from_data_address(address: str, name: str) -> bytes:
    """The bytes of `data:image/png;base64,iVBOR…` (RFC 2397)."""
    head, comma, body = address.partition(",")
    if not comma:
        raise PictureError(f"{name}: has no comma, after which the picture would begin")
    data = urllib.parse.unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    try:
        data = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/"))  # of either alphabet
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise PictureError(f"{name}: is not base64") from None


def _from_file(file: IO[bytes], name: str, frame: int | None) -> Image.Image:
    if not (hasattr(file, "seek") and file.seekable()):
        file = io.BytesIO(file.read())
    file.seek(0)
    start = file.read(1024)
    if not isinstance(start, bytes):
        raise PictureError(f"{name}: is open as text; open it in binary mode")
    if not start:
        raise PictureError(f"{name}: is empty")
    if _PDF.match(start):
        return to_rgb(_pdf_page(file, name, frame), name)
    try:
        with Image.open(file, formats=FORMATS) as image:
            if frame is not None and frame > 1:
                if frame > (count := getattr(image, "n_frames", 1)):
                    raise PictureError(f"{name}: there is no frame {frame}, it has {count}")
                image.seek(frame - 1)
            result = to_rgb(image, name)
            if frame is None and image.format != "MPO" and getattr(image, "is_animated", False):
                result.info[IS_FIRST_OF_SEVERAL] = True
            return result
    except UnidentifiedImageError:
        kind = next((kind for mark, kind in _OTHERS if re.match(mark, start, re.DOTALL)), None)
        suffix = Path(re.sub(r"#\d+$", "", name)).suffix.lower()
        if kind is None and suffix in UNREAD_SUFFIXES:  # TGA and most raw formats have no mark
            kind = f"a {suffix} picture"
        what = (
            f"is {kind}, which is not read; save it as PNG or JPEG" if kind else "is not a picture"
        )
        raise PictureError(f"{name}: {what}") from None


@contextmanager
def _pdf_document(file: IO[bytes], name: str) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError:
        raise PictureError(f"{name}: is a PDF; {not_installed('pypdfium2')}") from None
    file.seek(0)
    with _PDF_LOCK, closing(pypdfium2.PdfDocument(file.read())) as document:
        yield document


def _pdf_page(file: IO[bytes], name: str, frame: int | None) -> Image.Image:
    with _pdf_document(file, name) as document:
        if (frame or 1) > len(document):
            raise PictureError(f"{name}: there is no page {frame}, it has {len(document)}")
        page = document[(frame or 1) - 1]
        scale = min(_PDF_SCALE, _PDF_LONGEST / max(page.get_size()))
        image = page.render(scale=scale).to_pil().convert("RGB")  # a copy of the page's memory
        if frame is None and len(document) > 1:
            image.info[IS_FIRST_OF_SEVERAL] = True
        return image


def _from_tensor(tensor: Tensor) -> NDArray[np.generic]:
    """C × H × W, H × W × C or H × W → the array, H × W (× C); where both fit, C comes first."""
    tensor = tensor.detach().cpu()
    array: NDArray[np.generic] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    is_planes = array.ndim == 3 and array.shape[0] in (1, 3, 4)
    return array.transpose(1, 2, 0) if is_planes else array


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    good_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not good_shape or 0 in array.shape:
        hint = "; of several pictures make a list" if array.ndim == 4 else ""
        raise PictureError(
            f"an array of shape {array.shape} is not a picture: "
            f"give height × width, or height × width × 3 (RGB) or 4 (RGBA){hint}"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise PictureError("a picture of floats must lie in 0 … 1; give uint8 for 0 … 255")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        array = (array.astype(np.float64) / 257).round().astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        raise PictureError(
            f"an array of {array.dtype} is not a picture: give uint8, uint16, or floats in 0 … 1"
        )
    array = array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(array))
