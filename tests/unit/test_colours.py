"""A picture's values mean what its format says: as a careful viewer shows them, in 8-bit sRGB."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from tests.tiny import noise_picture

from paliglass.colours import _UNPACKING, _Budget
from paliglass.errors import PictureError
from paliglass.pictures import load_picture

WHITE = (255, 255, 255)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def greys(source: Any) -> list[int]:
    """The first row of a picture that must be grey."""
    row = np.asarray(load_picture(source))[0]
    assert (row == row[:, :1]).all()
    return [int(value) for value in row[:, 0]]


def packed(values: Sequence[int], bits: int) -> bytes:
    text = "".join(f"{value:0{bits}b}" for value in values)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


# Depth


def tiff(
    data: bytes, width: int, bits: int, sample_format: int = 1, is_white_0: bool = False,
    endian: str = "<",
) -> bytes:  # fmt: skip
    """A grey TIFF of one row, written by hand: Pillow writes few of those that it reads."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: int(not is_white_0),
        273: 8 + 2 + 12 * 10 + 4,  # where the data begin
        277: 1,
        278: 1,
        279: len(data),
        339: sample_format,
    }
    entries = b"".join(struct.pack(endian + "HHII", tag, 4, 1, v) for tag, v in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[endian] + struct.pack(endian + "IH", 8, len(tags))
    return start + entries + bytes(4) + data


def numbers(values: Sequence[float], kind: str, endian: str = "<") -> bytes:
    return np.array(values, endian + kind).tobytes()


def test_12_bits_are_scaled_by_12_bits() -> None:
    assert greys(tiff(packed([0, 1024, 2048, 4095], 12), 4, 12)) == [0, 64, 128, 255]


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "sample_format", "values"),
    [
        ("u2", 1, [0, 32768, 65535]),
        ("i2", 2, [0, 16384, 32767]),
        ("i2", 2, [-100, 0, 100]),  # no range but their own
        ("i4", 2, [0, 128, 255]),
        ("i4", 2, [0, 2_000_000, 4_000_000]),
        ("f4", 3, [0, 0.5, 1]),
        ("f4", 3, [0, 128, 255]),
        ("f4", 3, [0, 2048, 4095]),
        ("f4", 3, [-1, 0, 1]),
    ],
)
def test_a_grey_of_any_depth_goes_from_black_to_white(
    kind: str, sample_format: int, values: list[float], endian: str
) -> None:
    bits = 8 * int(kind[1])
    data = tiff(numbers(values, kind, endian), 3, bits, sample_format, endian=endian)
    low, middle, high = greys(data)
    assert (low, high) == (0, 255)
    assert middle in (127, 128)


def test_32_unsigned_bits_do_not_turn_negative() -> None:
    assert greys(tiff(numbers([0, 2**31, 2**32 - 1], "u4"), 3, 32)) == [0, 128, 255]


def test_a_dark_picture_stays_dark() -> None:
    """Its format tells what white is; that nothing comes near it is the picture."""
    assert greys(tiff(numbers([0, 257, 514], "u2"), 3, 16)) == [0, 1, 2]
    assert greys(b"P5 3 1 65535\n" + numbers([0, 257, 514], "u2", ">")) == [0, 1, 2]
    assert greys(tiff(packed([0, 16, 32], 12), 3, 12)) == [0, 1, 2]


def test_lights_beyond_white_do_not_darken_the_rest() -> None:
    values = [0.5] * 199 + [40.0]
    assert greys(tiff(numbers(values, "f4"), 200, 32, 3)) == [128] * 199 + [255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, np.nan, 1], [0, 0, 255]),
        ([0, np.inf, 1], [0, 255, 255]),
        ([-np.inf, 0, 1], [0, 0, 255]),
        ([np.nan] * 3, [0, 0, 0]),
        ([3.4e38, 0, -3.4e38], [255, 128, 0]),
    ],
)
def test_values_that_are_no_numbers_hide_none_that_are(
    values: list[float], expected: list[int]
) -> None:
    assert greys(tiff(numbers(values, "f4"), 3, 32, 3)) == expected
    assert greys(Image.fromarray(np.array([values], np.float32))) == expected


@pytest.mark.parametrize(
    ("data", "bits", "sample_format"),
    [
        (bytes([0, 128, 255]), 8, 1),
        (numbers([0, 32896, 65535], "u2"), 16, 1),
        (numbers([0, 0.5, 1], "f4"), 32, 3),
    ],
)
def test_where_0_is_white_it_is_white(data: bytes, bits: int, sample_format: int) -> None:
    white, middle, black = greys(tiff(data, 3, bits, sample_format, is_white_0=True))
    assert (white, black) == (255, 0)
    assert middle in (127, 128)


@pytest.mark.parametrize("top", [255, 1023, 65535])
def test_a_pgm_is_scaled_by_the_white_it_names(top: int) -> None:
    kind = "u2" if top > 255 else "u1"
    found = greys(b"P5 3 1 %d\n" % top + numbers([0, top // 2, top], kind, ">"))
    assert found == [0, 127, 255]


def test_deep_greys_take_little_more_memory_than_what_comes_out() -> None:
    """Of the pixels, as RGB 4 bytes each; a double for each would be 8 more, several times."""
    side = 3000
    image = Image.fromarray(np.zeros((side, side), np.uint16))
    tracemalloc.start()  # sees numpy's memory, in which the sums are made
    load_picture(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * side**2


def test_threads_unpack_no_more_at_a_time_than_one_might() -> None:
    budget = _Budget(10)
    together: list[int] = []

    def unpack(count: int) -> None:
        with budget.room_for(count):
            together.append(budget.taken)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(unpack, [1, 9, 4, 25, 10, 3, 3, 3, 7, 25] * 20))
    assert len(together) == 200
    assert all(taken <= 10 or taken == 25 for taken in together)
    assert budget.taken == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_does_not_wait_for_its_parents_threads() -> None:
    """As a worker of a data loader, forked while another thread unpacks."""
    budget = _Budget(10)
    with budget.room_for(10):
        child = os.fork()
        if not child:
            os._exit(7 if budget.taken == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_picture_that_fails_leaves_its_room() -> None:
    for _ in range(3):
        with pytest.raises(PictureError):
            load_picture(as_bytes(noise_picture(200, 200))[:3000])
    assert _UNPACKING.taken == 0


# Transparency


def png(depth: int, colour_type: int, row: bytes, width: int, **chunks: bytes) -> bytes:
    """A PNG of one row, written by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    more = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [0, 1, None])
def test_the_grey_that_is_transparent_is_white(depth: int, clear: int | None) -> None:
    top = (1 << depth) - 1
    values = sorted({0, top // 3, top})
    key = None if clear is None else values[clear]
    more = {} if key is None else {"tRNS": struct.pack(">H", key)}
    found = greys(png(depth, 0, packed(values, depth), len(values), **more))
    assert found == [255 if value == key else round(value * 255 / top) for value in values]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_colour_that_is_transparent_is_white(depth: int) -> None:
    scale = 1 if depth == 8 else 257
    colours = [(10, 20, 30), (200, 0, 7)]
    row = packed([value * scale for colour in colours for value in colour], depth)
    key = struct.pack(">3H", *(value * scale for value in colours[1]))
    image = load_picture(png(depth, 2, row, 2, tRNS=key))
    assert [image.getpixel((x, 0)) for x in range(2)] == [colours[0], WHITE]


def test_a_palette_may_be_half_transparent() -> None:
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image = load_picture(png(8, 3, bytes([0, 1, 2]), 3, PLTE=palette, tRNS=bytes([0, 128])))
    assert [image.getpixel((x, 0)) for x in range(3)] == [WHITE, (127, 255, 127), (0, 0, 255)]


# Colour profiles

PRIMARIES = {  # of sRGB, adapted to D50
    "r": (0.4360747, 0.2225045, 0.0139322),
    "g": (0.3850649, 0.7168786, 0.0971045),
    "b": (0.1430804, 0.0606169, 0.7141733),
}


def profile(channels: str = "rgb", gamma: float = 1.0) -> bytes:
    """An ICC profile whose red, green and blue are those of sRGB in some order; "": of greys."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + fixed(*values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = (0.9642, 1.0, 0.8249)
    tags = {b"wtpt": xyz(white), b"cprt": b"text" + bytes(4) + b"none"}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    for name, colour in zip("rgb", channels, strict=False):
        tags[name.encode() + b"XYZ"] = xyz(PRIMARIES[colour])
        tags[name.encode() + b"TRC"] = curve
    if not channels:
        tags[b"kTRC"] = curve
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    space = b"RGB " if channels else b"GRAY"
    head = struct.pack(">I", start + len(data)) + b"lcms" + bytes([2, 0x40, 0, 0])
    head += b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(*white)
    return head.ljust(128, b"\0") + table + data


def encoded(linear: np.ndarray) -> np.ndarray:
    """Shares of light → sRGB's 8 bits."""
    bent = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return bent * 255


NOISE = noise_picture(16, 16)
VALUES = np.asarray(NOISE).astype(float)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_a_linear_profile_brightens(kind: str, options: dict[str, Any]) -> None:
    loaded = np.asarray(load_picture(as_bytes(NOISE, kind, icc_profile=profile(), **options)))
    assert np.abs(loaded - encoded(VALUES / 255)).max() < 1.6


def test_a_jpegs_profile_counts() -> None:
    grey = Image.new("RGB", (16, 16), (55, 55, 55))
    assert abs(greys(as_bytes(grey, "JPEG", icc_profile=profile()))[0] - 127) <= 2


def test_a_profile_may_swap_channels() -> None:
    loaded = np.asarray(load_picture(as_bytes(NOISE, icc_profile=profile("gbr"))))
    expected = encoded(VALUES[..., [2, 0, 1]] / 255)
    assert np.abs(loaded - expected).max() < 1.6


def test_greys_have_profiles_too() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    expected = encoded(ramp[0] / 255).round()
    deep = ramp.astype(np.uint16) * 257
    for image in (Image.fromarray(ramp), Image.fromarray(deep)):
        found = greys(as_bytes(image, icc_profile=profile("")))
        assert np.abs(found - expected).max() <= 1


def test_a_palettes_colours_have_the_profile() -> None:
    image = NOISE.quantize(16)
    expected = encoded(np.asarray(image.convert("RGB")) / 255)
    loaded = np.asarray(load_picture(as_bytes(image, icc_profile=profile())))
    assert np.abs(loaded - expected).max() < 1.6


def test_a_profile_says_nothing_of_transparency() -> None:
    image = NOISE.copy()
    image.putalpha(128)
    loaded = np.asarray(load_picture(as_bytes(image, icc_profile=profile())))
    expected = (encoded(VALUES / 255).round() * 128 + 255 * 127) / 255
    assert np.abs(loaded - expected).max() < 2


def test_the_same_from_an_open_image_as_from_its_file() -> None:
    data = as_bytes(NOISE, icc_profile=profile())
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(load_picture(image)), np.asarray(load_picture(data)))


def test_what_has_been_converted_is_not_converted_again() -> None:
    once = load_picture(as_bytes(NOISE, icc_profile=profile()))
    assert np.array_equal(np.asarray(load_picture(once)), np.asarray(once))


def test_srgb_itself_changes_no_number() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    loaded = load_picture(as_bytes(NOISE, icc_profile=srgb))
    assert np.array_equal(np.asarray(loaded), VALUES)


@pytest.mark.parametrize("broken", [b"no profile", profile()[:200], profile(""), bytes(500)])
def test_a_profile_that_is_none_or_of_other_colours_is_passed_over(broken: bytes) -> None:
    loaded = load_picture(as_bytes(NOISE, icc_profile=broken))
    assert np.array_equal(np.asarray(loaded), VALUES)


def with_chunks(image: Image.Image, **chunks: Any) -> bytes:
    """A PNG with gAMA, cHRM (numbers, times 100 000 in the file) or sRGB."""
    more = PngInfo()
    for name, value in chunks.items():
        numbers = value if isinstance(value, tuple) else (value,)
        fields = b"".join(struct.pack(">I", round(number * 1e5)) for number in numbers)
        more.add(name.encode(), bytes([value]) if name == "sRGB" else fields)
    kept = {k: v for k, v in image.info.items() if k == "transparency"}
    return as_bytes(image, pnginfo=more, **kept)


@pytest.mark.parametrize("gamma", [0.3, 0.35, 0.55, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_png_looks_the_same_whatever_gamma_it_was_stored_with(mode: str, gamma: float) -> None:
    light = np.linspace(0.3, 1, 256).reshape(16, 16)
    stored = (light**gamma * 255).round().astype(np.uint8)
    image = Image.fromarray(stored)
    if mode == "I;16":
        image = Image.fromarray((light**gamma * 65535).round().astype(np.uint16))
    elif mode != "L":
        image = image.convert(mode)
    loaded = np.asarray(load_picture(with_chunks(image, gAMA=gamma))).astype(float)
    known = encoded((stored / 255) ** (1 / gamma))  # of what is left of it in 8 bits
    assert np.abs(loaded - known[..., None]).max() <= 4
    assert np.abs(loaded - encoded(light)[..., None]).mean() < 2


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": 0.45455},
        {"gAMA": 0.46},
        {"gAMA": 0.0},
        {"gAMA": 1.0, "sRGB": 0},
        {"cHRM": (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)},
        {"cHRM": (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.0)},
        {"cHRM": (0.3127, 0.0, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)},
        {"cHRM": (0.3,) * 8},
    ],
)
def test_chunks_that_say_srgb_or_nonsense_change_no_number(chunks: dict[str, Any]) -> None:
    assert np.array_equal(np.asarray(load_picture(with_chunks(NOISE, **chunks))), VALUES)


SWAPPED = (0.3127, 0.329, 0.3, 0.6, 0.15, 0.06, 0.64, 0.33)  # red is green, green blue


def test_other_primaries_are_converted_with_and_without_a_gamma() -> None:
    loaded = np.asarray(load_picture(with_chunks(NOISE, cHRM=SWAPPED)))
    assert np.abs(loaded - VALUES[..., [2, 0, 1]]).max() <= 1
    loaded = np.asarray(load_picture(with_chunks(NOISE, cHRM=SWAPPED, gAMA=1.0)))
    assert np.abs(loaded - encoded(VALUES[..., [2, 0, 1]] / 255)).max() < 1.6
    # Adobe RGB's green is greener than any of sRGB; the matrix is Lindbloom's, linear light.
    adobe = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    colours = np.array([[[0, 200, 0], [255, 255, 255], [90, 90, 90], [180, 200, 180]]], np.uint8)
    loaded = np.asarray(load_picture(with_chunks(Image.fromarray(colours), cHRM=adobe)))[0]
    assert loaded[:3].tolist() == colours[0, :3].tolist()
    assert np.abs(loaded[3].astype(int) - [171, 200, 179]).max() <= 1


def test_a_profile_outweighs_the_chunks_and_they_leave_transparency_alone() -> None:
    more = PngInfo()
    more.add(b"gAMA", struct.pack(">I", 250_000))
    loaded = np.asarray(load_picture(as_bytes(NOISE, icc_profile=profile(), pnginfo=more)))
    assert np.abs(loaded - encoded(VALUES / 255)).max() < 1.6
    half = NOISE.copy()
    half.putalpha(128)
    loaded = np.asarray(load_picture(with_chunks(half, gAMA=1.0)))
    expected = (encoded(VALUES / 255).round() * 128 + 255 * 127) / 255
    assert np.abs(loaded - expected).max() < 2


def test_nothing_of_the_files_metadata_stays() -> None:
    """It would be applied twice where the picture is saved and opened again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = NOISE.convert("L")
    data = as_bytes(image, icc_profile=profile(""), exif=exif, transparency=3)
    assert load_picture(data).info == {}
