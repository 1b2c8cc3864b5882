"""Whatever is called a picture comes out upright, RGB, 8 bits, or as one clear line."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import noise_picture

from paliglass.errors import PictureError
from paliglass.pictures import MAX_PIXELS, load_picture, picture_rows

RED, WHITE = (255, 0, 0), (255, 255, 255)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_same_picture_from_every_kind_of_source(tmp_path: Path) -> None:
    image = noise_picture()
    path = tmp_path / "picture.png"
    image.save(path)
    array = np.asarray(image)
    for source in (path, str(path), path.read_bytes(), image, array, array / 255):
        loaded = load_picture(source)
        assert (loaded.mode, loaded.size) == ("RGB", image.size)
        assert np.array_equal(np.asarray(loaded), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    """Boxes refer to the picture as a viewer shows it."""
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste(RED, (0, 0, 10, 10))  # a red upper left corner
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_picture(as_bytes(stored, exif=exif))
    assert loaded.size == (40, 20)
    assert loaded.getpixel((2, 2)) == RED
    assert loaded.getpixel((35, 15)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (3, 2), "white")
    image = white.convert("RGBA").convert(mode) if mode in ("PA", "LA") else white.convert(mode)
    loaded = load_picture(image)
    assert (loaded.mode, loaded.size) == ("RGB", (3, 2))
    assert min(loaded.getpixel((1, 1))) >= 254


def test_cmyk_jpeg_keeps_its_colour() -> None:
    loaded = load_picture(as_bytes(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG"))
    red, green, blue = loaded.getpixel((8, 8))
    assert red > 230
    assert max(green, blue) < 30


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    loaded = load_picture(as_bytes(image))
    assert loaded.getpixel((0, 0)) == WHITE
    assert loaded.getpixel((1, 0)) == (255, 127, 127)


def test_palette_with_a_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    loaded = load_picture(as_bytes(image, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128 * 257, 65535]], dtype=np.uint16)
    loaded = load_picture(as_bytes(Image.fromarray(values)))
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_picture(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_one_pixel_wide_is_a_picture(size: tuple[int, int]) -> None:
    assert load_picture(as_bytes(Image.new("RGB", size))).size == size


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "is not a picture"),
        (as_bytes(noise_picture())[:3000], "cannot be read"),
        (as_bytes(noise_picture(), "JPEG")[:3000], "cannot be read"),
        (as_bytes(noise_picture(), "WEBP")[:3000], "cannot be read"),
        (png_header(20_000, 20_000), "pixels"),
        (png_header(15_000, 12_000), "pixels"),
        (png_header(100, 100), "cannot be read"),
    ],
    ids=["empty", "text", "half png", "half jpeg", "half webp", "bomb", "large", "header alone"],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(PictureError) as error:
        load_picture(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(PictureError, match=rf"^picture \(bytes\): .*{said}"):
        load_picture(data)


def test_a_decoder_that_trips_is_a_broken_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's TIFF reader raises TypeError where a damaged offset reads as a fraction."""

    def trip(_image: Image.Image) -> Image.Image:
        raise TypeError("'float' object cannot be interpreted as an integer")

    monkeypatch.setattr("paliglass.pictures._orientation", trip)
    with pytest.raises(PictureError, match="cannot be read"):
        load_picture(as_bytes(noise_picture()))


def test_the_largest_picture_is_pillows_own_limit() -> None:
    assert MAX_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nothing\.png: no such file"):
        load_picture(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="is a folder"):
        load_picture(tmp_path)


def with_exif(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return as_bytes(noise_picture(20, 16), kind, exif=exif)


GOOD_FILES = {kind: with_exif(kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF")} | {
    kind: as_bytes(noise_picture(20, 16).quantize(8), kind) for kind in ("GIF", "BMP", "PNG")
}


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(GOOD_FILES)),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0, 1),
)
def test_no_damage_whatever_raises_anything_else(
    kind: str, damage: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(GOOD_FILES[kind])
    for place, value in damage:
        data[min(int(place * len(data)), len(data) - 1)] = value
    if kept < 0.5:
        data = data[: int(2 * kept * len(data))]
    with contextlib.suppress(PictureError):
        assert load_picture(bytes(data)).mode == "RGB"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.full((4, 4), 2.0),
        np.full((4, 4), np.nan),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(PictureError, match=r"a picture"):
        load_picture(array)


def test_the_callers_picture_is_left_alone() -> None:
    image = Image.new("RGB", (4, 4), "red")
    load_picture(image).putpixel((0, 0), WHITE)
    assert image.getpixel((0, 0)) == RED


def test_rows_of_pictures() -> None:
    assert picture_rows("a") == [["a"]]
    assert picture_rows(["a", "b"]) == [["a"], ["b"]]
    assert picture_rows([["a", "b"], "c"]) == [["a", "b"], ["c"]]
