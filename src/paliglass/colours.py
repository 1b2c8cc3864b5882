"""Whatever Pillow has opened → 8-bit sRGB as a careful viewer shows it, upright, over white."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from paliglass.errors import PictureError

__all__ = ["IS_FIRST_OF_SEVERAL", "MAX_PIXELS", "to_rgb"]

MAX_PIXELS = 178_956_970  # 0.5 GB as RGB; Pillow's own limit for "this is an attack"

IS_FIRST_OF_SEVERAL = "is_first_of_several"
"""Key in the `info` of what `load_picture` returns, where a file has more frames or pages than the
one taken and none was named."""

# EXIF's number for how a picture is turned → what turns it back.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Whatever Pillow opens → RGB, turned upright; a new image, without metadata.

    Raises PictureError with its name where it has too many pixels, or none.
    """
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise PictureError(
            f"{name}: {width} × {height} pixels; it must have some, and at most {MAX_PIXELS:,}"
        )
    with _UNPACKING.room_for(width * height):
        return _unpacked(image)


class _Budget:
    """Pixels that threads may unpack at a time: eight readers take no more memory than one might.

    What is larger than all of it has its turn alone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.reset()
        if hasattr(os, "register_at_fork"):  # a child has none of the threads that took some
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        self.taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def room_for(self, count: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + count <= self.size)
            self.taken += count
        try:
            yield
        finally:
            with self._changed:
                self.taken -= count
                self._changed.notify_all()


_UNPACKING = _Budget(MAX_PIXELS)


def _unpacked(image: Image.Image) -> Image.Image:
    bits = _grey_bits(image)
    image.load()
    orientation = _orientation(image)
    kept: dict[Any, Any] = {key: True for key in (IS_FIRST_OF_SEVERAL,) if image.info.get(key)}
    profile = image.info.get("icc_profile")
    colours, alpha = _split_alpha(image, bits)
    if isinstance(profile, bytes):
        convert = _to_srgb(profile, colours.mode)
    else:
        convert = _from_chunks(image.info, colours.mode)
    if convert is not None:
        colours = convert(colours)
    rgb = colours.copy() if colours is image and image.mode == "RGB" else colours.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", rgb.size, "white")
        white.paste(rgb, mask=alpha)
        rgb = white
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    rgb.info = kept  # what it told of profile, orientation and transparency holds no longer
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF's number for how a picture is turned; 1, upright, where EXIF is broken or silent."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # of metadata alone, without which the picture is whole
        return 1


def _grey_bits(image: Image.Image) -> int:
    """Bits of a grey sample as stored: Pillow scales 2 and 4 to 8, but not the transparent one."""
    tiles = getattr(image, "tile", None) or [(None,)]
    match = re.fullmatch(r"L;([24])", str(tiles[0][-1]))
    return int(match[1]) if match else 8


def _split_alpha(image: Image.Image, bits: int) -> tuple[Image.Image, Image.Image | None]:
    """8-bit colours, and how opaque each pixel is (L), where that is told.

    bits: of a grey sample as stored, see `_grey_bits`.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, key)
    if not image.has_transparency_data:
        if image.mode in ("L", "RGB", "CMYK"):  # what colour profiles are made for
            return image, None
        return image.convert("L" if image.mode == "1" else "RGB"), None
    if image.mode == "L" and isinstance(key, int):
        top = (1 << bits) - 1
        clear = (key & top) * 255 // top
        return image, image.point([0 if value == clear else 255 for value in range(256)])
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # 16 bits a sample
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    grey = image.mode in ("1", "LA", "La")
    mode = "LA" if grey else "RGBA"
    full = image if image.mode == mode else image.convert(mode)
    return full.convert("L" if grey else "RGB"), full.getchannel("A")


def _from_deep(image: Image.Image, key: object) -> tuple[Image.Image, Image.Image | None]:
    """Greys of more than 8 bits, which Pillow would clip at 255, to 8; and see `_split_alpha`.

    They are scaled by the range of their format. Where that tells nothing, as for floats and 32
    bits, by the values' own.
    """
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(339) == (1,):  # SampleFormat: unsigned
        values = values.view(np.uint32)
    low, high = _range(image, values, tags)
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white; Pillow minds it up to 8 bits
        low, high = high, low
    grey = np.empty(values.shape, np.uint8)
    scale = 255 / (high - low)
    for rows in _row_blocks(values):
        some = np.nan_to_num(values[rows].astype(np.float64), posinf=np.inf, neginf=-np.inf)
        grey[rows] = ((some - low) * scale).clip(0, 255).round()
    if not isinstance(key, int):
        return Image.fromarray(grey), None
    return Image.fromarray(grey), Image.fromarray((values != key).astype(np.uint8) * np.uint8(255))


def _range(image: Image.Image, values: NDArray[Any], tags: Any) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, 2.0 ** tags.get(258, (16,))[0] - 1  # BitsPerSample
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0.0, 65535.0
    lowest, highest, inside = np.inf, -np.inf, 0
    for rows in _row_blocks(values):
        some = values[rows]
        finite = some[np.isfinite(some)]
        if not finite.size:
            continue
        lowest = min(lowest, float(finite.min()))
        highest = max(highest, float(finite.max()))
        inside += int(((finite >= 0) & (finite <= 1)).sum())
    if image.mode == "F" and (inside >= 0.99 * values.size or highest == -np.inf):
        return 0.0, 1.0  # a float picture's own range; lights beyond it are cut
    if lowest >= 0 and tags.get(339) == (2,) and tags.get(258) == (16,) and highest > 255:
        return 0.0, 32767.0
    if lowest >= 0 and (0 if image.mode == "I" else 127) < highest <= 255:
        return 0.0, 255.0
    if not lowest < highest:  # one value, or none
        return lowest - 1, lowest + 1
    return lowest, highest


def _row_blocks(values: NDArray[Any]) -> Iterator[slice]:
    """Some rows at a time, so that sums in floats take little memory."""
    step = max(1, 250_000 // values.shape[1])
    return (slice(start, start + step) for start in range(0, values.shape[0], step))


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """From the colours of a profile (ICC), in images of mode L, RGB or CMYK, to sRGB.

    None where there is nothing to do: it is sRGB itself, to a rounding, or broken, or made for
    other colours than these; viewers pass over such.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        if mode == "L":  # lcms's quick way with greys is ten steps off in the dark
            exact = ImageCms.Flags.NOOPTIMIZE
            transform = ImageCms.buildTransform(source, target, mode, "RGB", flags=exact)
            ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            tables = np.asarray(ImageCms.applyTransform(ramp, transform))[0].T.tolist()
            return lambda image: Image.merge("RGB", [image.point(table) for table in tables])
        transform = ImageCms.buildTransform(source, target, mode, "RGB")
        if mode == "RGB":
            steps = np.linspace(0, 255, 9).round().astype(np.uint8)
            grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
            after = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
            if np.abs(after.astype(int) - grid).max() <= 2:
                return None
    except Exception:  # lcms, and what Pillow makes of profiles that are none
        return None
    return lambda image: cast("Image.Image", ImageCms.applyTransform(image, transform))


def _from_chunks(info: dict[Any, Any], mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """What a PNG's chunks gAMA and cHRM say of its colours, in images of mode L or RGB, to sRGB.

    None where there is nothing to do: with a chunk sRGB, which outweighs them, or where what they
    say is sRGB to a rounding, or nonsense.
    """
    if "srgb" in info or mode not in ("L", "RGB"):
        return None
    gamma, places = info.get("gamma"), info.get("chromaticity")
    # 1/2.2 stands for sRGB's own curve; libpng takes 5 % for a rounding too.
    samples = np.linspace(0, 1, 256)
    bends = isinstance(gamma, float) and gamma > 0 and abs(gamma * 2.2 - 1) > 0.05
    light = samples ** (1.0 / float(gamma or 1)) if bends else _to_light(samples)
    matrix = _to_srgb_primaries(places) if mode == "RGB" and isinstance(places, tuple) else None
    if matrix is None:
        if not bends:
            return None
        table = _to_samples(light).tolist()
        return lambda image: image.point(table * len(image.getbands()))

    def convert(image: Image.Image) -> Image.Image:
        values = np.array(image)
        for rows in _row_blocks(values):
            values[rows] = _to_samples(light[values[rows]] @ matrix.T)
        return Image.fromarray(values)

    return convert


def _to_light(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB's samples, 0 … 1, → shares of light (IEC 61966-2-1)."""
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _to_samples(light: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Shares of light → sRGB's samples, 0 … 255."""
    light = light.clip(0, 1)
    bent = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (bent * 255).round().astype(np.uint8)


# x and y of white, red, green and blue, as in a chunk cHRM.
_SRGB_PLACES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _to_srgb_primaries(places: tuple[float, ...]) -> NDArray[np.float64] | None:
    """Light in other primaries, 3, → in sRGB's: 3 × 3. None where they are sRGB's, or nonsense."""
    found = np.array(places, np.float64)
    if found.shape != (8,) or np.abs(found - _SRGB_PLACES).max() < 0.002:
        return None
    try:
        with np.errstate(all="raise"):
            (white, own), (target, srgb) = _to_xyz(found), _to_xyz(np.array(_SRGB_PLACES))
            adapt = np.diag((_BRADFORD @ target) / (_BRADFORD @ white))
            return np.linalg.inv(srgb) @ np.linalg.inv(_BRADFORD) @ adapt @ _BRADFORD @ own
    except (ArithmeticError, np.linalg.LinAlgError):
        return None


def _to_xyz(places: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """XYZ of white, 3; and what turns shares of red, green and blue into XYZ, 3 × 3."""
    x, y = places[::2], places[1::2]
    white, *primaries = np.stack((x / y, np.ones(4), (1 - x - y) / y), -1)
    columns = np.stack(primaries, -1)
    return white, columns * np.linalg.solve(columns, white)
