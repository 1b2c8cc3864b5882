"""Photographs read out of a package made on the spot."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workshop.world import World, photos
from workshop.world.art import Art
from workshop.world.concepts import CONCEPTS
from workshop.world.photos import PACKAGE, fetch_photos, photo_names

from paliglass.errors import PaliglassError

NAMES = {"dog": ["animals/dog"], "apple": ["food/red", "food/green"]}


def package(stamps: list[str]) -> bytes:
    """A Debian package with a square of 40 × 20 opaque pixels for each stamp."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for stamp in stamps:
            picture = Image.new("RGBA", (60, 60))
            picture.paste((200, 10, 10, 255), (10, 30, 50, 50))
            png = io.BytesIO()
            picture.save(png, "PNG")
            info = tarfile.TarInfo(f"./usr/share/tuxpaint/stamps/{stamp}.png")
            info.size = len(png.getvalue())
            archive.addfile(info, io.BytesIO(png.getvalue()))
    members = {"debian-binary": b"2.0\n", "data.tar.xz": data.getvalue()}
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    content = package([stamp for some in NAMES.values() for stamp in some])
    (tmp_path / PACKAGE).write_bytes(content)
    monkeypatch.setattr(photos, "photo_names", lambda: NAMES)
    monkeypatch.setattr(photos, "SHA256", hashlib.sha256(content).hexdigest())
    return tmp_path


def test_stamps_are_cropped_and_kept(cache: Path) -> None:
    found = fetch_photos(cache, 30)
    assert [len(found[name]) for name in NAMES] == [1, 2]
    assert found["dog"][0].shape == (15, 30, 4)
    (cache / PACKAGE).unlink()  # what was cut out is kept
    again = fetch_photos(cache, 30)
    assert np.array_equal(again["apple"][1], found["apple"][1])


def test_another_package_is_refused(cache: Path) -> None:
    (cache / PACKAGE).write_bytes(b"!<arch>\n")
    with pytest.raises(PaliglassError, match="not the package that is meant"):
        fetch_photos(cache, 30)


def test_a_package_that_cannot_be_had_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "URL", (tmp_path / "nothing.deb").as_uri())
    with pytest.raises(PaliglassError, match="the photographs cannot be had"):
        fetch_photos(tmp_path, 30)


def test_a_stamp_that_is_not_there_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "photo_names", lambda: {"cat": ["animals/cat"]})
    with pytest.raises(PaliglassError, match="lacks animals/cat"):
        fetch_photos(cache, 30)


def test_every_photograph_shows_a_concept() -> None:
    assert photo_names().keys() <= CONCEPTS.keys()
    assert sum(map(len, photo_names().values())) == 85


def test_scenes_of_photographs_hold_only_what_there_is(
    cache: Path, art: Art, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = cache / "text.npz"
    arrays = {f"digits test {digit}": ink for digit, ink in enumerate(art.digits)}
    data = np.frombuffer(art.fonts[0].data, np.uint8)
    np.savez(text, data=data, ends=[len(data)], names=["face"], roles=["test"], **arrays)  # type: ignore[arg-type]
    monkeypatch.setattr("workshop.world.art.build", lambda *_: text)
    world = World(cache, "photos")
    assert set(world.art.stickers) == set(NAMES)
    scenes = [world.scene(i) for i in range(40)]
    shown = {t.name for scene in scenes for t in scene.objects if t.kind == "sticker"}
    assert shown & set(NAMES)
    assert not shown & (CONCEPTS.keys() - set(NAMES))
