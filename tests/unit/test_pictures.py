"""Whatever is called a picture comes out upright, RGB, 8 bits, or as one clear line."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import struct
import unicodedata
import urllib.parse
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.tiny import noise_picture

from paliglass.errors import PictureError
from paliglass.pictures import (
    FORMATS,
    IS_FIRST_OF_SEVERAL,
    MAX_PIXELS,
    SUFFIXES,
    UNREAD_SUFFIXES,
    find_file,
    load_picture,
    picture_rows,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)
FRAMES = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


class Stream:
    """A file that cannot be wound back, as a socket's."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_same_picture_from_every_kind_of_source(tmp_path: Path) -> None:
    image = noise_picture()
    path = tmp_path / "picture.png"
    image.save(path)
    data, array = path.read_bytes(), np.asarray(image)
    tensor = torch.from_numpy(array.copy())
    planes = tensor.permute(2, 0, 1)
    coded = base64.b64encode(data).decode()
    sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image]
    sources += [array, array / 255, tensor, planes, planes / 255, planes.double() / 255]
    sources += [f"data:image/png;base64,{coded}", f"data:;base64,{coded.rstrip('=')}"]
    sources += [f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}"]
    sources += [f"DATA:image/png;name=a;base64,\n{coded[:50]}\n {coded[50:]}"]
    sources += [f"data:,{urllib.parse.quote(data)}", f"data:;base64,{urllib.parse.quote(coded)}"]
    with path.open("rb") as file:
        for source in (*sources, file, Stream(data)):
            loaded = load_picture(source)
            assert (loaded.mode, loaded.size) == ("RGB", image.size)
            assert np.array_equal(np.asarray(loaded), array)
        assert not file.closed


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


def pdf(colours: tuple[tuple[int, int, int], ...], width: int = 40, height: int = 20) -> bytes:
    """A page of each colour, width × height points."""
    count = len(colours)
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(count))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {count}>>"]
    for i, colour in enumerate(colours):
        drawing = "{} {} {} rg 0 0 9999 9999 re f".format(*(value / 255 for value in colour))
        box = f"/MediaBox[0 0 {width} {height}]"
        objects.append(f"<</Type/Page/Parent 2 0 R{box}/Contents {4 + 2 * i} 0 R>>")
        objects.append(f"<</Length {len(drawing)}>>stream\n{drawing}\nendstream")
    text, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(text))
        text += f"{number} 0 obj{content}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    return (
        f"{text}xref\n0 {size}\n0000000000 65535 f \n{table}"
        f"trailer<</Root 1 0 R/Size {size}>>\nstartxref\n{len(text)}\n%%EOF"
    ).encode()


def frames(kind: str) -> bytes:
    first, *others = (Image.new("RGB", (40, 20), colour) for colour in FRAMES)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    return as_bytes(first, kind, save_all=True, append_images=others, **options)


SEVERAL: dict[str, Callable[[], bytes]] = {
    "gif": lambda: frames("GIF"),
    "webp": lambda: frames("WEBP"),
    "apng": lambda: frames("PNG"),
    "avif": lambda: frames("AVIF"),
    "tiff": lambda: frames("TIFF"),
    "pdf": lambda: pdf(FRAMES),
}


def is_near(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.asarray(image).astype(int) - colour).max() <= 3)


@pytest.mark.parametrize("kind", SEVERAL)
def test_frames_and_pages_count_from_one(tmp_path: Path, kind: str) -> None:
    if kind == "pdf":
        pytest.importorskip("pypdfium2")
    path = tmp_path / f"several.{kind}"
    path.write_bytes(SEVERAL[kind]())
    for number, colour in enumerate(FRAMES, 1):
        assert is_near(load_picture(f"{path}#{number}"), colour)
        assert is_near(load_picture(Path(f"{path}#{number}")), colour)
        assert is_near(load_picture(path.read_bytes(), frame=number), colour)
    for number in (4, 99_999):
        with pytest.raises(PictureError, match=rf"there is no (frame|page) {number}, it has 3"):
            load_picture(f"{path}#{number}")
    with pytest.raises(PictureError, match="count from 1"):
        load_picture(f"{path}#0")
    for wrong in (0, -1, True, 1.0):
        with pytest.raises(PictureError, match="count from 1"):
            load_picture(path, frame=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SEVERAL)
def test_the_first_is_taken_unless_told_and_said_to_be_the_first(tmp_path: Path, kind: str) -> None:
    if kind == "pdf":
        pytest.importorskip("pypdfium2")
    path = tmp_path / f"several.{kind}"
    path.write_bytes(SEVERAL[kind]())
    first = load_picture(path)
    assert is_near(first, FRAMES[0])
    assert first.info == {IS_FIRST_OF_SEVERAL: True}
    assert load_picture(f"{path}#1").info == {}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_a_single_picture_has_one_frame(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(as_bytes(noise_picture(), kind))
    assert load_picture(path).info == {}
    assert load_picture(f"{path}#1").size == noise_picture().size
    with pytest.raises(PictureError, match="there is no frame 2, it has 1"):
        load_picture(f"{path}#2")


def test_a_file_of_that_very_name_comes_before_a_frame(tmp_path: Path) -> None:
    (tmp_path / "shot.gif").write_bytes(frames("GIF"))
    Image.new("RGB", (3, 3), "white").save(tmp_path / "shot.gif#2", "PNG")
    assert load_picture(tmp_path / "shot.gif#2").size == (3, 3)
    with pytest.raises(PictureError, match=r"other\.gif#2: no such file"):
        load_picture(tmp_path / "other.gif#2")


def test_an_image_or_array_has_no_frames() -> None:
    for source in (noise_picture(), np.zeros((4, 4), np.uint8)):
        with pytest.raises(PictureError, match="frame is for files"):
            load_picture(source, frame=1)


def test_a_page_is_drawn_at_144_dots_an_inch_and_within_bounds() -> None:
    pytest.importorskip("pypdfium2")
    assert load_picture(pdf(FRAMES[:1], 40, 20)).size == (80, 40)
    assert max(load_picture(pdf(FRAMES[:1], 14_400, 7_200)).size) == 4096


def test_a_pdf_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    with pytest.raises(PictureError, match=r"pip install 'paliglass\[pdf\]'"):
        load_picture(pdf(FRAMES))


@pytest.mark.parametrize("kept", [20, 100, 300])
def test_a_broken_pdf_is_one_line(kept: int) -> None:
    pytest.importorskip("pypdfium2")
    with pytest.raises(PictureError) as error:
        load_picture(pdf(FRAMES)[:kept])
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize("name", ["a.tga", "a.CR3", "a.tar#b.tga", "a.tga#2"])
def test_a_format_that_is_not_read_is_told_by_its_name_where_no_mark_tells(name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "TGA")
    file.name = name
    suffix = ".cr3" if name == "a.CR3" else ".tga"
    with pytest.raises(PictureError) as error:
        load_picture(file)
    assert str(error.value) == (
        f"{name}: is a {suffix} picture, which is not read; save it as PNG or JPEG"
    )


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


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "Photoshop": b"8BPS\0\1" + bytes(40),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a" + bytes(40),
    "icon": as_bytes(Image.new("RGB", (16, 16)), "ICO"),
    "BLP": b"BLP1" + bytes(40),
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("kind", OTHERS)
def test_only_the_named_formats_are_opened_whatever_the_name_says(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPS would start Ghostscript, a program of its own with a language of its own."""
    monkeypatch.setattr("subprocess.Popen", lambda *_a, **_k: pytest.fail("a program is started"))
    path = tmp_path / "picture.png"
    path.write_bytes(OTHERS[kind])
    with pytest.raises(PictureError, match=rf"picture\.png: is (a |an )?{kind}.*which is not read"):
        load_picture(path)


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "QOI", "DDS", "ICNS"])
def test_formats_that_are_not_named_are_not_opened(kind: str) -> None:
    with pytest.raises(PictureError):
        load_picture(as_bytes(Image.new("RGB", (16, 16)), kind))


def test_every_format_that_is_named_is_opened() -> None:
    image = Image.new("RGB", (16, 16), RED)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "MPO"):
        assert load_picture(as_bytes(image, kind)).size == (16, 16)


def test_the_page_names_every_format_that_is_opened() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\.[a-z0-9]+\b", page.partition("## What becomes")[0])) >= SUFFIXES
    for name in FORMATS:
        assert name.replace("JPEG2000", "JPEG 2000").lower() in page.lower()
    assert f"{MAX_PIXELS:,}" in page


def test_a_folder_has_no_suffix_of_both_kinds() -> None:
    assert not SUFFIXES & UNREAD_SUFFIXES
    assert {".avif", ".jfif", ".jpe", ".apng"} <= SUFFIXES
    assert {".heic", ".svg", ".jxl"} <= UNREAD_SUFFIXES


TEXT_EXIF = {
    "no hex": "\nexif\n 8\nthis is not hex\n",
    "no lines": "rubbish",
    "empty": "",
    "cut": "\nexif\n 8\n45786966",
}


@pytest.mark.parametrize("kind", TEXT_EXIF)
def test_broken_metadata_refuses_no_picture(kind: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Raw profile type exif", TEXT_EXIF[kind])
    image = noise_picture()
    loaded = load_picture(as_bytes(image, pnginfo=texts))
    assert np.array_equal(np.asarray(loaded), np.asarray(image))


@pytest.mark.parametrize("file", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff", b"Exif\0\0" + b"M" * 9]
)
def test_truncated_exif_refuses_no_picture(file: str, exif: bytes) -> None:
    assert load_picture(as_bytes(noise_picture(), file, exif=exif)).size == noise_picture().size


@pytest.mark.parametrize(
    "error",
    [RuntimeError("grid"), MemoryError(), struct.error("short"), AssertionError(), KeyError("x")],
)
def test_every_exception_of_a_decoder_is_that_pictures(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    noise_picture().save(path)

    def fail(_image: Image.Image) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(PictureError, match=r"picture\.png: cannot be read \(.+\)"):
        load_picture(path)


def test_an_unreadable_file_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    noise_picture().save(path)

    def refuse(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PictureError) as error:
        load_picture(path)
    assert str(error.value) == f"{path}: cannot be read (Permission denied)"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "picture.png")
    with pytest.raises(PictureError, match=r"picture\.png: is no regular file"):
        load_picture(tmp_path / "picture.png")
    with pytest.raises(PictureError, match="is no regular file"):
        load_picture("/dev/zero")


def test_a_file_open_as_text_is_told_so(tmp_path: Path) -> None:
    noise_picture().save(tmp_path / "picture.bmp")
    with (tmp_path / "picture.bmp").open(encoding="latin-1") as file:
        with pytest.raises(PictureError, match="open it in binary mode"):
            load_picture(file)  # type: ignore[arg-type]
        assert not file.closed


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,%%%", "is not base64"),
        ("data:image/png;base64,aGVsbG8", "is not a picture"),
        ("data:,", "is empty"),
        ("http://example.org/a.png", "http addresses are not opened"),
        ("https://example.org/a.png", "https addresses are not opened.*fetch_picture"),
        ("file:///tmp/a.png", "file addresses are not opened; give the path alone$"),
    ],
)
def test_addresses_that_hold_no_picture_are_refused(address: str, said: str) -> None:
    with pytest.raises(PictureError, match=said):
        load_picture(address)


def test_an_empty_name_is_no_picture() -> None:
    with pytest.raises(PictureError, match=r"^the name of a picture is empty$"):
        load_picture("")


def test_a_name_in_a_message_stays_short() -> None:
    with pytest.raises(PictureError) as error:
        load_picture("A" * 100_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "a" * 300])
def test_a_name_no_file_can_have_is_one_line(name: str) -> None:
    with pytest.raises(PictureError):
        load_picture(name)


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_letters_composed_otherwise_name_the_same_file(
    tmp_path: Path, stored: Any, asked: Any
) -> None:
    folder = tmp_path / unicodedata.normalize(stored, "Ångström")
    folder.mkdir()
    noise_picture().save(folder / unicodedata.normalize(stored, "café é.png"))
    path = tmp_path / unicodedata.normalize(asked, "Ångström/café é.png")
    assert load_picture(path).size == noise_picture().size
    assert load_picture(str(path)).size == noise_picture().size


def test_backslashes_name_the_file_they_name_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    noise_picture().save(tmp_path / "a" / "b" / "c.png")
    monkeypatch.chdir(tmp_path)
    assert load_picture("a\\b\\c.png").size == noise_picture().size
    assert load_picture(tmp_path / "a\\b\\c.png").size == noise_picture().size
    Image.new("RGB", (3, 3)).save(tmp_path / "a\\c.png")
    assert load_picture("a\\c.png").size == (3, 3)
    assert find_file("a\\none.png") == Path("a\\none.png")


@pytest.mark.parametrize("shape", [(3, 6, 5), (1, 6, 5), (4, 6, 5), (6, 5, 3), (6, 5, 1), (6, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_is_a_picture_in_either_order(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    tensor += 255 if dtype == torch.uint8 else 1
    loaded = load_picture(tensor.requires_grad_(dtype.is_floating_point))
    assert loaded.size == (5, 6)
    assert loaded.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 3, 4, 4), torch.full((3, 4, 4), -1.0), torch.zeros(3, 4, 4, dtype=torch.int64)],
)
def test_a_tensor_that_is_no_picture_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(PictureError, match=r"a picture"):
        load_picture(tensor)


@pytest.mark.parametrize("source", [None, 3, object(), {"a": 1}])
def test_what_is_no_picture_at_all_is_refused(source: Any) -> None:
    with pytest.raises(PictureError, match="is not a picture"):
        load_picture(source)


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
