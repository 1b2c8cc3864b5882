"""0 · Whatever a user calls a picture → an upright RGB image.

Boxes and masks refer to what this returns: rotated as EXIF says, the first frame of an animation,
transparency laid over white.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from paliglass.errors import PictureError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as the model takes it; see `PaliGemmaProcessor.prepare`.

    pixels: 3 × S × S. size: width and height of the upright picture, to which coordinates refer.
    """

    pixels: Tensor
    size: tuple[int, int]

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal pixels, by which what the model made of them is found again."""
        return hashlib.blake2b(self.pixels.contiguous().numpy().data, digest_size=16).digest()


Picture = Image.Image | str | os.PathLike[str] | bytes | NDArray[np.generic] | PreparedPicture
"""A path, a PIL image, the bytes of a file, an array (H × W, H × W × 3 or H × W × 4), or what the
processor has prepared."""

Pictures = Picture | Sequence[Picture | Sequence[Picture]]
"""A picture, a list of them, or a list of lists: the several pictures of each prompt."""

MAX_PIXELS = 178_956_970  # 0.5 GB as RGB; Pillow's own limit for "this is an attack"

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What is taken for a picture in a folder. A file named on its own is tried whatever its name."""


def picture_rows(images: Pictures) -> list[list[Picture]]:
    """What a user gave, as one list of pictures for each prompt. An array or bytes is a picture."""
    entries = images if isinstance(images, list | tuple) else [images]
    rows = [entry if isinstance(entry, list | tuple) else [entry] for entry in entries]
    return cast("list[list[Picture]]", rows)


def load_picture(source: Picture) -> Image.Image:
    """Opens a picture as upright RGB, W × H pixels of 8 bits.

    Raises PictureError, naming the file, where it is missing, empty, truncated, not a picture, or
    so large once unpacked that it would fill the memory.
    """
    if not isinstance(source, Image.Image | np.ndarray | bytes | str | os.PathLike):
        raise PictureError(
            f"{type(source).__name__} is not a picture: give a path, a PIL image, bytes or an array"
        )
    is_path = isinstance(source, str | os.PathLike)
    name = str(source) if is_path else f"picture ({type(source).__name__})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's remarks on odd metadata; size is checked here
            if isinstance(source, np.ndarray):
                return _rgb(_from_array(source), name)
            if isinstance(source, Image.Image):
                return _rgb(source, name)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return _rgb(image, name)
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{name}: is a folder, not a picture") from None
    except UnidentifiedImageError:
        empty = source == b"" or (is_path and not Path(name).stat().st_size)
        raise PictureError(f"{name}: {'is empty' if empty else 'is not a picture'}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: too many pixels; scale the picture down first") from None
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        # What Pillow's decoders raise on broken files.
        raise PictureError(f"{name}: cannot be read ({error})") from None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise PictureError(
            f"{name}: {width} × {height} pixels; it must have some, and at most {MAX_PIXELS:,}"
        )
    image = ImageOps.exif_transpose(image)  # a copy, whatever EXIF says
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit and float greys, which Pillow would clip at 255, to 8 bits.

    "I;16" is 16-bit. What Pillow calls "I" or "F" does not tell its range: the values do.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    most = values.max(initial=0)
    top = 65535.0
    if not image.mode.startswith("I;16") and most <= 255:
        top = 1.0 if image.mode == "F" and most <= 1 else 255.0
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    good_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not good_shape or 0 in array.shape:
        raise PictureError(
            f"an array of shape {array.shape} is not a picture: "
            "give height × width, or height × width × 3 (RGB) or 4 (RGBA)"
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
    return Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)
