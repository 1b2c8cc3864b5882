"""Picture files: sizes, orientations, names of other systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.data.files import paint

from paliglass.data.pictures import Frame, Header, compare, named_file, read_header
from paliglass.tasks.boxes import Box


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_headers_tell_size_and_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = paint(tmp_path / f"a.{suffix}", (100, 40), orientation)
    header = read_header(path)
    assert header == Header((100, 40), orientation)
    with Image.open(path) as image:
        assert header.upright == ImageOps.exif_transpose(image).size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_frame_turns_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    stored = np.zeros((40, 100), np.uint8)
    stored[5:15, 20:60] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    frame = Frame(orientation)
    assert (frame.mask(stored.astype(np.float32)) == upright).all()
    box = frame.box(Box(20 / 100, 5 / 40, 60 / 100, 15 / 40))
    rows, columns = np.nonzero(upright)
    height, width = upright.shape
    found = box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height
    expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("header", "size", "frame", "remark"),
    [
        (Header((100, 40)), (100, 40), Frame(), None),
        (Header((100, 40)), (1000, 400), Frame(), "they scale"),
        (Header((1000, 667)), (500, 333), Frame(), "they scale"),
        (Header((100, 40)), (40, 100), None, "its annotations are of 40 × 100"),
        (Header((100, 40)), (100, 50), None, "its annotations are of 100 × 50"),
        (Header((100, 40), 6), (40, 100), Frame(), None),
        (Header((100, 40), 6), (100, 40), Frame(6), "turned with it"),
        (Header((100, 40), 6), (200, 80), Frame(6), "turned with it"),
        (Header((100, 40), 3), (100, 40), Frame(), "taken to be of the turned picture"),
        (Header((50, 50), 8), (50, 50), Frame(), "taken to be of the turned picture"),
        (Header((100, 40), 6), (90, 90), None, "has 40 × 100 pixels"),
    ],
)
def test_sizes_are_compared(
    header: Header, size: tuple[int, int], frame: Frame | None, remark: str | None
) -> None:
    found, said = compare(header, *size)
    assert found == frame
    assert remark == said or (remark and said and remark in said)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"II*\x00"])
def test_what_is_no_picture_has_no_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert read_header(tmp_path / "a.png") is None
    assert read_header(tmp_path / "nothing.png") is None


def test_a_name_that_is_a_file_means_that_file(tmp_path: Path) -> None:
    for name in ("a.png", "b/a.png", "b\\a.png"):
        paint(tmp_path / name, (4, 4))
    assert named_file(tmp_path, "b\\a.png") == tmp_path / "b\\a.png"
    (tmp_path / "b\\a.png").unlink()
    assert named_file(tmp_path, "b\\a.png") == tmp_path / "b" / "a.png"
    for name in ("gone.png", "a\x00b", "x" * 5000, ""):
        assert named_file(tmp_path, name) == tmp_path / name
