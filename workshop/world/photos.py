"""Photographs cut out with alpha, of things that the world knows: for testing alone.

They are stamps of Tux Paint, from the Debian package tuxpaint-stamps-default (GPL-2 as a whole),
which is fetched when a test asks for it and compared with the hash in this file. `photos.tsv` says
which stamps show what: chosen by hand, photographs only. Of the package nothing is unpacked: the
chosen members are read in memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paliglass.errors import PaliglassError
from paliglass.files import replacing

__all__ = ["PACKAGE", "SHA256", "fetch_photos", "photo_names"]

VERSION = "2022.06.04-1"
PACKAGE = f"tuxpaint-stamps-default_{VERSION}_all.deb"
URL = f"https://deb.debian.org/debian/pool/main/t/tuxpaint-stamps/{PACKAGE}"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
_FOLDER = "./usr/share/tuxpaint/stamps/"
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


def photo_names() -> dict[str, list[str]]:
    """Concept → the stamps that show it, as paths inside the package without `.png`."""
    table = (files("workshop.world") / "photos.tsv").read_text("utf-8")
    stamps: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t"):
        stamps.setdefault(row["name"], []).append(row["stamp"])
    return stamps


def fetch_photos(cache: Path, pixels: int) -> dict[str, list[NDArray[np.uint8]]]:
    """The cut-outs of each concept: h × w × 4, cropped to what is visible, at most `pixels` a side.

    They are kept in `cache`; the first call fetches 161 MB.

    Raises PaliglassError: the package cannot be had, or is not the one that is meant.
    """
    names = photo_names()
    digest = hashlib.sha256(repr(names).encode()).hexdigest()[:8]
    path = cache / f"photos-{VERSION}-{digest}-{pixels}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = {f"{_FOLDER}{stamp}.png": stamp for some in names.values() for stamp in some}
        pictures = {}
        with tarfile.open(fileobj=_data(_package(cache)), mode="r:xz") as archive:
            for member in archive:
                if member.name in wanted and (file := archive.extractfile(member)):
                    pictures[wanted[member.name]] = _cut(file.read(), pixels)
        lacking = sorted(set(wanted.values()) - pictures.keys())
        if lacking:
            raise PaliglassError(f"{PACKAGE} lacks {lacking[0]}")
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **pictures)
    with np.load(path, allow_pickle=False) as kept:
        return {name: [kept[stamp] for stamp in stamps] for name, stamps in names.items()}


def _package(cache: Path) -> bytes:
    """The Debian package, from the cache or from Debian."""
    path = cache / PACKAGE
    if not path.exists():
        try:
            with replacing(path) as unfinished, urllib.request.urlopen(URL, timeout=60) as answer:
                unfinished.write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise PaliglassError(
                f"the photographs cannot be had ({error}); put {URL} into {cache}"
            ) from None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise PaliglassError(f"{path} is not the package that is meant: delete it")
    return content


def _data(package: bytes) -> io.BytesIO:
    """The member data.tar.xz of a Debian package, which is an `ar` archive."""
    place = len(_AR_MAGIC)
    while place + _AR_HEADER <= len(package):
        header = package[place : place + _AR_HEADER]
        name, size = header[:16].decode().strip(" /"), int(header[48:58])
        place += _AR_HEADER
        if name == "data.tar.xz":
            return io.BytesIO(package[place : place + size])
        place += size + size % 2
    raise PaliglassError(f"{PACKAGE} holds no data.tar.xz")


def _cut(png: bytes, pixels: int) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return np.asarray(picture)
