"""Addresses: only what is opted in to is opened, and nothing is unpacked that is too large."""

from __future__ import annotations

import asyncio
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.serving.helpers import SCENE, Running, chat, data_address, noise_address, png
from tests.tiny import noise_picture, tiny_processor

from paliglass.errors import PictureError
from paliglass.pictures import PreparedPicture
from paliglass.serving import Settings, pictures
from paliglass.serving.errors import ApiError
from paliglass.serving.pictures import PictureReader

PROCESSOR = tiny_processor()


def prepared(address: str, **settings: Any) -> PreparedPicture:
    reader = PictureReader(Settings(**settings))
    try:
        [found] = asyncio.run(reader.prepare(PROCESSOR, [address]))
    finally:
        reader.close()
    return found


def test_a_data_address_is_the_picture() -> None:
    data = SCENE.read_bytes()
    expected = PROCESSOR.prepare(data)
    found = prepared(data_address(data))
    assert found.digest == expected.digest
    assert found.size == expected.size


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("data:image/png,abc", "data:image/png;base64"),
        ("data:image/png;base64", "data:image/png;base64"),
        ("data:image/png;base64,äöü", "not base64"),
        ("data:image/png;base64,!!!!", "not base64"),
        ("data:image/png;base64,", "none that can be read"),
        ("data:image/png;base64,YWJj", "none that can be read"),
        ("https://example.org/a.png", "--allow-media-domain"),
        ("file:///etc/passwd", "--media-path"),
        ("http://example.org/a.png", "begins with data:"),
        ("/etc/passwd", "begins with data:"),
        ("ftp://example.org", "begins with data:"),
        ("", "begins with data:"),
    ],
)
def test_what_is_not_opted_in_to_is_not_opened(address: str, match: str) -> None:
    with pytest.raises(PictureError, match=match):
        prepared(address)


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims a size and has the data for it to begin with."""
    import struct

    def part(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_picture_that_would_explode_is_refused_by_its_header(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PROCESSOR, "prepare", None)  # nothing is to be unpacked
    with pytest.raises(PictureError, match="scale it down"):
        prepared(data_address(bomb(side, side)))


def test_a_file_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ApiError, match="1,000 bytes") as error:
        prepared(data_address(b"x" * 2000), max_picture=1000)
    assert error.value.status == 413


@pytest.mark.parametrize("kind", ["EPS", "PDF", "TGA", "ICO", "PPM"])
def test_formats_that_are_not_named_are_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    noise_picture().save(path, kind)
    with pytest.raises(PictureError, match="none that can be read"):
        prepared(data_address(path.read_bytes()))


def test_a_folder_is_opted_in_to_and_nothing_outside_it(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "secret.png"
    folder.mkdir()
    noise_picture().save(folder / "a b.png")
    noise_picture().save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    found = prepared((folder / "a b.png").as_uri(), media_path=folder)
    assert found.digest == PROCESSOR.prepare(str(folder / "a b.png")).digest
    escapes = [
        outside.as_uri(),
        f"{folder.as_uri()}/../secret.png",
        f"{folder.as_uri()}/%2e%2e/secret.png",
        (folder / "link.png").as_uri(),
        (folder / "missing.png").as_uri(),
        (folder / "sub").as_uri(),
        (folder / "pipe").as_uri(),
        "file://otherhost/" + str(folder / "a b.png"),
        "file:///" + "a" * 5000,
        "file:///a%00b",
        "file:///dev/zero",
    ]
    for address in escapes:
        with pytest.raises(PictureError, match="there is no such picture"):
            prepared(address, media_path=folder)


def test_named_hosts_are_fetched_from_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(address: str, hosts: Any, *, max_bytes: int) -> bytes:
        asked.append((address, tuple(hosts), max_bytes))
        return SCENE.read_bytes()

    monkeypatch.setattr(pictures, "fetch_picture", fetch)
    address = "https://example.org/a.png"
    found = prepared(address, media_domains=("example.org",))
    assert found.digest == PROCESSOR.prepare(SCENE.read_bytes()).digest
    assert asked == [(address, ("example.org",), 20_000_000)]


def test_a_host_that_is_not_named_or_not_public_is_not_asked() -> None:
    with pytest.raises(PictureError, match="not allowed"):
        prepared("https://example.com/a.png", media_domains=("example.org",))
    with pytest.raises(PictureError, match="not public"):
        prepared("https://127.0.0.1/a.png", media_domains=("127.0.0.1",))


def test_a_picture_sent_again_is_not_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PictureReader(Settings(picture_cache=3 * 56 * 56 * 4 * 2))
    unpacked: list[int] = []
    prepare = PROCESSOR.prepare
    monkeypatch.setattr(PROCESSOR, "prepare", lambda d: unpacked.append(1) or prepare(d))
    order = [0, 0, 1, 0, 2, 0, 1]
    for seed in order:
        asyncio.run(reader.prepare(PROCESSOR, [noise_address(seed)]))
    reader.close()
    assert len(unpacked) == 4  # 0, 1, 2, and 1 again, which two others had displaced


def test_a_broken_picture_is_a_named_error(server: Running) -> None:
    whole = png(noise_picture())
    for data in (whole[:200], b"\xff\xd8\xff" + b"\0" * 50):
        answer = server.post("/v1/chat/completions", chat("caption en", data_address(data)))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "invalid_image"
        assert "/" not in error["message"]  # no path


def test_the_upright_picture_is_what_boxes_refer_to(server: Running) -> None:
    with Image.open(SCENE) as image:
        turned = image.convert("RGB").rotate(90, expand=True).resize((300, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    import io

    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    body = {"image_url": data_address(buffer.getvalue(), "jpeg"), "object": "tractor"}
    upright = server.engine.model.detect(buffer.getvalue(), "tractor")
    assert (upright.width, upright.height) == (200, 300)
    found = server.post("/v1/detect", body).json()["objects"]
    for item, there in zip(found, upright, strict=True):
        np.testing.assert_allclose(item["x_max"] * 200, there.box.x1, atol=1e-3)
        np.testing.assert_allclose(item["y_max"] * 300, there.box.y1, atol=1e-3)
